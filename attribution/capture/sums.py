"""Running sums of rows while a model trains, and the mean rows made of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.index.windows import default_shard_rows
from headwater.attribution.rows.checks import require_finite
from headwater.attribution.rows.norms import unit_rows
from headwater.train.artifacts import remove
from headwater.train.tensor_files import load_tensors, save_tensors

SAVED = ("sums", "weights", "visits")
MEND = "restore the checkpoint, or make the index from another one"


class MeanRows:
    """Sums of lr x row / |row|, and of lr, of the passages of some shards.

    Args:
        directory: for the memory-mapped sums.
        passages, dims: of the corpus, and of a row.
        share: (r, n): this is the r-th of n holders, which has every n-th shard; None holds nothing.
    """

    def __init__(self, directory: Path, passages: int, dims: int, share: tuple[int, int] | None = (0, 1)) -> None:
        self.directory, self.width = directory, default_shard_rows(dims)
        numbers = range(-(-passages // self.width))
        self.sums: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}
        self.visits: dict[int, Tensor] = {}
        for number in numbers[share[0] :: share[1]] if share else ():
            directory.mkdir(parents=True, exist_ok=True)
            rows = min(self.width, passages - number * self.width)
            with open(self._file(number), "wb") as file:
                # Taken now: a map that finds the disk full later ends the process.
                os.posix_fallocate(file.fileno(), 0, rows * dims * 4)
            held = np.memmap(self._file(number), np.float32, "r+", shape=(rows, dims))
            self.sums[number] = torch.from_numpy(held)
            self.weights[number] = torch.zeros(rows, dtype=torch.float64)
            self.visits[number] = torch.zeros(rows, dtype=torch.int64)

    def _file(self, number: int) -> Path:
        return self.directory / f"sums-{number:05d}.f32"

    def discard(self) -> None:
        """Removes the memory-mapped files; the checkpoints hold what they held."""
        for number in self.sums:
            remove(self._file(number))

    def add(self, passages: Sequence[int], rows_ND: Tensor, lr: float) -> None:
        """Adds visits, in the order given: the same bits whoever holds a passage. Those of other holders are left."""
        for passage, row_D in zip(passages, unit_rows(rows_ND), strict=True):
            number, place = divmod(int(passage), self.width)
            if number in self.sums:
                self.sums[number][place].add_(row_D, alpha=lr)
                self.weights[number][place] += lr
                self.visits[number][place] += 1

    def save(self, directory: Path) -> None:
        for number, sums_ND in self.sums.items():
            tensors = {"sums": sums_ND, "weights": self.weights[number], "visits": self.visits[number]}
            save_tensors(directory / shard_file(number), tensors)

    def load(self, directory: Path) -> None:
        for number, sums_ND in self.sums.items():
            state = load_tensors(directory / shard_file(number), SAVED, fix=MEND)
            sums_ND.copy_(state["sums"])
            self.weights[number].copy_(state["weights"])
            self.visits[number].copy_(state["visits"])


def shard_file(number: int) -> str:
    return f"capture-mean-{number:05d}.safetensors"


def mean_rows(directory: Path, number: int) -> tuple[Tensor, Tensor]:
    """(mean rows float32 [n, D], visits int64 [n]) of one shard; a passage without a visit has a row of zeros."""
    state = load_tensors(directory / shard_file(number), SAVED, fix=MEND)
    weights_N1 = state["weights"].clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    means_ND = (state["sums"].double() / weights_N1).float()
    require_finite(means_ND, number * default_shard_rows(means_ND.shape[1]), "captured means")
    return means_ND, state["visits"]
