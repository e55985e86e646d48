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
from pathlib import Path

import torch

from headwater.attribution.capture.sums import mean_rows
from headwater.attribution.curvature.sums import SUMS
from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.index.windows import default_shard_rows
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import MissingError
from headwater.train.artifacts import RunDir, read_json
from headwater.train.checkpoint import Checkpoint, open_checkpoint, steps_in
from headwater.train.places import note_place
from headwater.train.stream.passages import open_passages

NOTE = "capture.json"
NAMED = 100
"""Passages without a visit that the manifest names; the rest it counts."""


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
    kind, damping, codecs = note.pop("curvature", "full"), note.pop("damping"), note.pop("codecs")
    out = run.index("captured")
    curvature = SUMS[kind](layout) if kind != "none" else None
    unseen: list[int] = []
    visits = 0
    for number in shards:
        means_ND, visits_N = mean_rows(extra, number)
        if curvature is not None:
            curvature.add(means_ND)
        unseen += (torch.nonzero(visits_N == 0).flatten() + number * width).tolist()
        visits += int(visits_N.sum())
    note["captured"] |= {
        "visits": visits,
        "never_visited": len(unseen),
        "never_visited_ids": [passages.id_of(number) for number in unseen[:NAMED]],
    }
    meta = {
        **note,
        "model": {key: note["model"][key] for key in ("kind", "precision")} | {"step": checkpoint.step},
        "places": {"run": note_place(run.path, out)},
        "model_fingerprint": checkpoint.fingerprint,
        "step": checkpoint.step,
        "corpus": passages.fingerprint,
        "tokenizer": passages.tokenizer_fingerprint,
    }
    writer = IndexWriter(
        out,
        layout=layout,
        passages=len(passages),
        whitening=curvature.whitening(damping) if curvature is not None else Whitening.none(layout),
        codecs=codecs,
        meta=meta,
    )
    _clear_other(out, writer)
    writer.begin()
    for number in writer.pending():
        writer.write(number, mean_rows(extra, number)[0])
    writer.finish(passages.id_batches())
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
