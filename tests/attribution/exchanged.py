"""What the ranks of `test_capture_parts` do: in a module of its own, so that other processes can find it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from headwater.attribution.capture.exchange import to_owners
from headwater.train import parallel


def rows_of_rank(rank: int) -> tuple[np.ndarray, torch.Tensor]:
    """Passages, some of them twice, and rows that tell who took them."""
    rng = np.random.default_rng(rank)
    passages = rng.integers(0, 40, 13 + 4 * rank)
    return passages, torch.from_numpy(rng.standard_normal((len(passages), 5))).float()


def exchange(out: Path) -> None:
    world = parallel.start(threads=1)
    passages, rows_ND = rows_of_rank(world.rank)
    owners = passages // 7 % world.size
    kept = to_owners(passages, rows_ND, owners, parallel.data_group())
    none = to_owners(passages[:0], rows_ND[:0], owners[:0], parallel.data_group())
    torch.save([kept, none], out / str(world.rank))
    parallel.stop()
