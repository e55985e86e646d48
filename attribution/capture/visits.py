"""Every visit's row with its step, in files of a fixed number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from headwater.configs.errors import MissingError
from headwater.train.artifacts import RunDir, atomic_path, remove
from headwater.train.tensor_files import load_tensors, save_tensors

SAVED = ("rows", "passage", "step", "lr")
MEND = "restore it: what it held is nowhere else"

STEPS_PER_FILE = 100
"""Steps whose visits are held in memory and then written to one file."""


class VisitLog:
    """Visits with their steps, in files of a fixed number of steps: the same files whether or not it was stopped.

    Args:
        directory: for the files.
        share: (r, n): this is the r-th of n ranks, each of which keeps the visits of its own passages. With more than
            one, each writes files of its own.
    """

    def __init__(self, directory: Path, share: tuple[int, int] = (0, 1)) -> None:
        self.directory, self.share = directory, share
        self._end = f"-{share[0]:05d}" if share[1] > 1 else ""
        self._pending: list[dict[str, Tensor]] = []

    def start(self, step: int) -> None:
        """Forgets the files that hold later steps than `step`; what they held of earlier ones is in the checkpoint."""
        for file in self.directory.glob("visits-*.safetensors") if self.share[0] == 0 else ():
            if int(file.stem.split("-")[1]) + STEPS_PER_FILE - 1 > step:
                remove(file)

    def add(self, step: int, passages: Sequence[int], rows_ND: Tensor, lr: float) -> None:
        count = len(passages)
        if count:
            self._pending.append(
                {
                    "rows": rows_ND.float(),
                    "passage": torch.tensor(list(passages), dtype=torch.int64),
                    "step": torch.full((count,), step, dtype=torch.int32),
                    "lr": torch.full((count,), lr, dtype=torch.float64),
                }
            )
        if step % STEPS_PER_FILE == 0:
            self.write(step)
            self._pending = []

    def write(self, step: int) -> None:
        """Writes what is pending to the file of that step, and keeps it: the file may not be full."""
        if self._pending:
            self.directory.mkdir(parents=True, exist_ok=True)
            first = (step - 1) // STEPS_PER_FILE * STEPS_PER_FILE + 1
            with atomic_path(self.directory / f"visits-{first:08d}{self._end}.safetensors") as part:
                save_tensors(part, self._joined())

    def _joined(self) -> dict[str, Tensor]:
        return {key: torch.cat([entry[key] for entry in self._pending]) for key in self._pending[0]}

    def save(self, directory: Path) -> None:
        if self._pending:
            save_tensors(directory / f"capture-visits{self._end}.safetensors", self._joined())

    def load(self, directory: Path, width: int) -> None:
        """Takes what was pending of this rank's passages, from as many ranks as there were.

        Args:
            width: passages of a shard; the n ranks keep every n-th.
        """
        (rank, ranks), self._pending = self.share, []
        for file in sorted(directory.glob("capture-visits*.safetensors")):
            held = load_tensors(file, SAVED, fix=MEND)
            mine = held["passage"] // width % ranks == rank
            if mine.any():
                self._pending.append({key: value[mine] for key, value in held.items()})
        if self._pending:  # in the order of the steps, as if they had been kept by this rank
            joined = self._joined()
            order = torch.argsort(joined["step"], stable=True)
            self._pending = [{key: value[order] for key, value in joined.items()}]


def read_visits(run: RunDir) -> Iterator[dict[str, Tensor]]:
    """The captured visits of a run, file by file, in order of step within each; one is open at a time.

    Each is rows float32 [n, D] (raw), passage int64 [n], step int32 [n], lr float64 [n]. Trained on several replicas,
    a hundred steps lie in several files, each with the visits of other passages.

    Raises:
        MissingError: the run kept none.
    """
    files = sorted((run.path / "capture").glob("visits-*.safetensors"))
    if not files:
        raise MissingError(
            f"{run.path} holds no captured visits", fix="train with callbacks.capture.enabled=true and mode=visits"
        )
    for file in files:
        yield load_tensors(file, SAVED, fix=MEND)
