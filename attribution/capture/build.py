"""Rows captured in training: the lr-weighted mean row of each passage, every visit, and the index made of them.

    python -m headwater.attribution.capture RUN [STEP]     # RUN/index/captured, from the sums that a checkpoint holds

    RUN/capture/sums-00000.f32                  running sums of a shard's passages, memory-mapped; only while training
    RUN/capture/visits-00000001.safetensors     mode visits: every visit of steps 1 to 100
    RUN/checkpoints/step-*/extra/capture-*      the sums as of that step

A row is the gradient of the passage's cross entropy, the training loss, at the weights and moments of its step. In a
mean every visit counts by its learning rate alone: its row is brought to unit length first, as a scan does with rows.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwater.attribution.curvature.whitening import CurvatureAccumulator, Whitening, require_finite, unit_rows
from headwater.attribution.index.writer import IndexWriter, default_shard_rows
from headwater.attribution.models.base import HeadwaterModel
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.settings import ProjectionSettings
from headwater.attribution.trace.queries import TraceQuery, query_rows
from headwater.configs.errors import MissingError
from headwater.train.artifacts import RunDir, atomic_path, read_json, remove
from headwater.train.checkpoint import Checkpoint, open_checkpoint, steps_in
from headwater.train.parallel import World
from headwater.train.stream.corpus import open_passages
from headwater.train.tokenizer import TextTokenizer

STEPS_PER_FILE = 100
"""Steps whose visits are held in memory and then written to one file."""

NOTE = "capture.json"
NAMED = 100
"""Passages without a visit that the manifest names; the rest it counts."""


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
            held = np.memmap(self._file(number), np.float32, "w+", shape=(rows, dims))
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
            save_file(tensors, directory / shard_file(number))

    def load(self, directory: Path) -> None:
        for number, sums_ND in self.sums.items():
            state = load_file(directory / shard_file(number))
            sums_ND.copy_(state["sums"])
            self.weights[number].copy_(state["weights"])
            self.visits[number].copy_(state["visits"])


def shard_file(number: int) -> str:
    return f"capture-mean-{number:05d}.safetensors"


class VisitLog:
    """Every visit with its step, in files of a fixed number of steps: the same files whether or not it was stopped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pending: list[dict[str, Tensor]] = []

    def start(self, step: int) -> None:
        """Forgets the files that hold later steps than `step`; what they held of earlier ones is in the checkpoint."""
        for file in self.directory.glob("visits-*.safetensors"):
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
            with atomic_path(self.directory / f"visits-{first:08d}.safetensors") as part:
                save_file(self._joined(), part)

    def _joined(self) -> dict[str, Tensor]:
        return {key: torch.cat([entry[key] for entry in self._pending]) for key in self._pending[0]}

    def save(self, directory: Path) -> None:
        if self._pending:
            save_file(self._joined(), directory / "capture-visits.safetensors")

    def load(self, directory: Path) -> None:
        file = directory / "capture-visits.safetensors"
        self._pending = [load_file(file)] if file.exists() else []


def read_visits(run: RunDir) -> Iterator[dict[str, Tensor]]:
    """The captured visits of a run, file by file in order of step: rows float32 [n, D] (raw), passage int64 [n], step
    int32 [n], lr float64 [n].

    Raises:
        MissingError: the run kept none.
    """
    files = sorted((run.path / "capture").glob("visits-*.safetensors"))
    if not files:
        raise MissingError(
            f"{run.path} holds no captured visits", fix="train with callbacks.capture.enabled=true and mode=visits"
        )
    for file in files:
        yield load_file(file)


def mean_rows(directory: Path, number: int) -> tuple[Tensor, Tensor]:
    """(mean rows float32 [n, D], visits int64 [n]) of one shard; a passage without a visit has a row of zeros."""
    state = load_file(directory / shard_file(number))
    weights_N1 = state["weights"].clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    means_ND = (state["sums"].double() / weights_N1).float()
    require_finite(means_ND, number * default_shard_rows(means_ND.shape[1]), "captured means")
    return means_ND, state["visits"]


def build_captured(run: RunDir, step: int | None = None) -> Path:
    """Makes RUN/index/captured from the sums in a checkpoint (the newest that has them); goes on if it was killed.

    An index of other sums that stands there is replaced.

    Raises:
        MissingError: no checkpoint holds captured rows.
    """
    checkpoint = _with_rows(run, step)
    extra = checkpoint.path / "extra"
    note = read_json(extra / NOTE)
    passages, layout = open_passages(run), RowLayout.from_json(note.pop("layout"))
    width = default_shard_rows(layout.dims)
    shards = range(-(-len(passages) // width))
    damping, codecs = note.pop("damping"), note.pop("codecs")
    out = run.index("captured")
    curvature = CurvatureAccumulator(layout)
    unseen: list[int] = []
    visits = 0
    for number in shards:
        means_ND, visits_N = mean_rows(extra, number)
        curvature.add(means_ND)
        unseen += (torch.nonzero(visits_N == 0).flatten() + number * width).tolist()
        visits += int(visits_N.sum())
    made = curvature.autocorrelation()
    ids = passages.ids(0, len(passages))
    note["captured"] |= {
        "visits": visits,
        "never_visited": len(unseen),
        "never_visited_ids": [ids[number] for number in unseen[:NAMED]],
    }
    meta = {
        **note,
        "model": note["model"] | {"step": checkpoint.step},
        "model_fingerprint": checkpoint.fingerprint,
        "step": checkpoint.step,
        "corpus": passages.fingerprint,
        "tokenizer": passages.tokenizer_fingerprint,
    }
    writer = IndexWriter(
        out,
        layout=layout,
        passages=len(passages),
        whitening=Whitening.from_autocorrelation(layout, made, damping, curvature.count),
        codecs=codecs,
        meta=meta,
    )
    _clear_other(out, writer)
    writer.begin()
    for number in writer.pending():
        writer.write(number, mean_rows(extra, number)[0])
    writer.finish(ids)
    return out


def _clear_other(out: Path, writer: IndexWriter) -> None:
    """Removes an index of another step: it was made by this run and the sums that it held are in that checkpoint."""
    if not (out / "index.json").exists():
        return
    writer.whitening.save(out / "curvature.safetensors")  # its fingerprint is part of what the index is made from
    if read_json(out / "index.json").get("fingerprint") != writer.manifest()["fingerprint"]:
        shutil.rmtree(out)
        writer.whitening.fingerprint = ""


def _with_rows(run: RunDir, step: int | None) -> Checkpoint:
    steps = [step] if step is not None else reversed(steps_in(run.checkpoints))
    for each in steps:
        checkpoint = open_checkpoint(run.checkpoint(each))
        if (checkpoint.path / "extra" / NOTE).exists():
            return checkpoint
    raise MissingError(
        f"{run.path} has no checkpoint with captured rows", got=step, fix="train with callbacks.capture.enabled=true"
    )


def captured_query_rows(
    manifest: dict[str, Any], world: World, tokenizer: TextTokenizer, queries: Sequence[TraceQuery]
) -> Tensor:
    """Raw query rows for an index of captured rows, float32 [Q, D]: the lr-weighted mean of the unit rows at the run's
    saved checkpoints up to the index's step, each with its own moments.

    Raises:
        MissingError: no checkpoint is left.
    """
    run = RunDir.at(manifest["model"]["run"])
    total_QD: Tensor | None = None
    weight = 0.0
    for step in steps_in(run.checkpoints):
        checkpoint = open_checkpoint(run.checkpoint(step))
        lr = float(checkpoint.meta["lr"])
        if step > manifest["step"] or not checkpoint.meta["updates"] or not lr:
            continue
        model = HeadwaterModel(checkpoint, world, manifest["model"]["precision"])
        projection = ProjectionSettings(**manifest["projection"])
        collector = GradientCollector(model, projection, manifest["correction"], manifest["loss"])
        rows_QD = unit_rows(query_rows(collector, tokenizer, queries)) * lr
        total_QD = rows_QD if total_QD is None else total_QD + rows_QD
        weight += lr
    if total_QD is None:
        raise MissingError(
            f"{run.path} has no checkpoint up to step {manifest['step']}", fix="keep some (checkpoint.steps)"
        )
    return total_QD / weight


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print(__doc__)
        return 2
    print(build_captured(RunDir.at(arguments[0]), int(arguments[1]) if len(arguments) == 2 else None))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
