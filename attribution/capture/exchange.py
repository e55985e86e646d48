"""Rows on their way from the replicas that took them to the ranks that keep them."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def to_owners(
    passages: np.ndarray, rows_ND: Tensor, owners: np.ndarray, group: dist.ProcessGroup
) -> tuple[np.ndarray, Tensor]:
    """Sends each row to the rank that keeps its passage; collective over the group.

    Args:
        passages: int64 [N], of this rank's rows.
        rows_ND: float32.
        owners: int [N], ranks of the group.
        group: one rank of each replica.

    Returns:
        The passages and rows that this rank keeps, in the order of the global batch.
    """
    device, size = rows_ND.device, dist.get_world_size(group)
    order = np.argsort(owners, kind="stable")
    sent = np.bincount(owners, minlength=size)
    counts = torch.from_numpy(sent).to(device)
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts, group=group)
    received = arriving.tolist()
    numbers = torch.empty(sum(received), dtype=torch.int64, device=device)
    rows = torch.empty(sum(received), rows_ND.shape[1], dtype=rows_ND.dtype, device=device)
    places = torch.from_numpy(order).to(device)
    mine = torch.from_numpy(passages).to(device)[places]
    dist.all_to_all_single(numbers, mine, received, sent.tolist(), group=group)
    dist.all_to_all_single(rows, rows_ND[places], received, sent.tolist(), group=group)
    return numbers.cpu().numpy(), rows
