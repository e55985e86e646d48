"""Running sums of rows while a model trains, and the mean rows made of them.

A checkpoint holds of each shard the sums as they once were, and after that what has changed from one checkpoint to the
next: files that it shares, as hard links, with the checkpoints before it, so that any of them can be removed. Where
half of a shard has been written again, or nothing can be linked, it is written whole.
"""

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
from headwater.configs.errors import CorruptError
from headwater.train.artifacts import remove
from headwater.train.tensor_files import load_tensors, save_tensors

SAVED = ("sums", "weights", "visits")
CHANGED = ("places", *SAVED)
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
        self._changed: dict[int, Tensor] = {}
        self._last: Path | None = None
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
            self._changed[number] = torch.zeros(rows, dtype=torch.bool)

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
                self._changed[number][place] = True

    def save(self, directory: Path) -> None:
        """Writes the sums into a checkpoint: what has changed since the last, beside what that one holds."""
        for number, sums_ND in self.sums.items():
            places = torch.nonzero(self._changed[number]).flatten()
            before = changes_in(self._last, number) if self._last is not None else []
            again = sum(rows_of(file) for file in before) + len(places)
            state = {"sums": sums_ND, "weights": self.weights[number], "visits": self.visits[number]}
            if 2 * again > len(sums_ND) or not self._linked(number, before, directory):
                save_tensors(directory / shard_file(number), state)
            elif len(places):
                changed = {"places": places, **{name: value[places] for name, value in state.items()}}
                save_tensors(directory / change_file(number, len(before), len(places)), changed)
            self._changed[number].zero_()
        # A checkpoint is written beside its place.
        self._last = directory.parent.with_name(directory.parent.name.removesuffix(".part")) / directory.name

    def _linked(self, number: int, changes: list[Path], directory: Path) -> bool:
        """Whether what the last checkpoint holds of a shard now stands in another directory too."""
        if self._last is None:
            return False
        made: list[Path] = []
        try:
            for file in (self._last / shard_file(number), *changes):
                os.link(file, directory / file.name)
                made.append(directory / file.name)
        except OSError:  # it is gone, or this file system has no links
            for file in made:
                remove(file)
            return False
        return True

    def load(self, directory: Path) -> None:
        for number, sums_ND in self.sums.items():
            state = read_state(directory, number)
            sums_ND.copy_(state["sums"])
            self.weights[number].copy_(state["weights"])
            self.visits[number].copy_(state["visits"])
        self._last = directory


def shard_file(number: int) -> str:
    return f"capture-mean-{number:05d}.safetensors"


def change_file(number: int, turn: int, rows: int) -> str:
    """The file of what changed in a shard, the `turn`-th since it was written whole."""
    return f"capture-mean-{number:05d}-{turn:05d}-{rows}.safetensors"


def changes_in(directory: Path, number: int) -> list[Path]:
    """What changed in a shard since it was written whole, in order."""
    return sorted(directory.glob(f"capture-mean-{number:05d}-*.safetensors"))


def rows_of(file: Path) -> int:
    return int(file.stem.split("-")[-1])


def read_state(directory: Path, number: int) -> dict[str, Tensor]:
    """The sums, weights and visits of one shard as a checkpoint holds them.

    Raises:
        MissingError, CorruptError: naming the file.
    """
    state = load_tensors(directory / shard_file(number), SAVED, fix=MEND)
    for file in changes_in(directory, number):
        changed = load_tensors(file, CHANGED, fix=MEND)
        try:
            for name in SAVED:
                state[name].index_copy_(0, changed["places"], changed[name])
        except (IndexError, RuntimeError) as error:
            raise CorruptError(f"{file} does not fit its shard", got=error, fix=MEND) from None
    return state


def mean_rows(directory: Path, number: int) -> tuple[Tensor, Tensor]:
    """(mean rows float32 [n, D], visits int64 [n]) of one shard; a passage without a visit has a row of zeros."""
    state = read_state(directory, number)
    weights_N1 = state["weights"].clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    means_ND = (state["sums"].double() / weights_N1).float()
    require_finite(means_ND, number * default_shard_rows(means_ND.shape[1]), "captured means")
    return means_ND, state["visits"]
