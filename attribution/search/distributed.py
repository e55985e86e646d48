"""This process among those of torch.distributed, if there are several."""

from __future__ import annotations

import torch


def distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """(rank, ranks) of torch.distributed; (0, 1) without it."""
    if not distributed():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def sum_over_ranks(value: int) -> int:
    if not distributed():
        return value
    total = torch.tensor(value)
    torch.distributed.all_reduce(total)
    return int(total)
