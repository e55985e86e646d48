"""An index with what belongs to it: the model that it was made with, its passages and their tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from headwater.attribution.index.reader import Index, open_index
from headwater.attribution.models.base import EPS
from headwater.attribution.rows.collector import GradientCollector, collect_passages
from headwater.attribution.settings import PlaceSettings, ProjectionSettings
from headwater.attribution.tracing.its_model import open_model_of
from headwater.attribution.tracing.queries import Query
from headwater.attribution.tracing.query_rows import captured_query_rows, query_rows
from headwater.configs.errors import MismatchError
from headwater.train import parallel
from headwater.train.artifacts import RunDir
from headwater.train.stream.passages import PassageSet, open_passages

BATCH_TOKENS = 2048
"""Tokens of a batch whose rows are made."""


@dataclass(slots=True)
class Opened:
    """An index with what belongs to it: how query rows are made, and the passages' texts."""

    index: Index
    collector: GradientCollector
    passages: PassageSet

    @property
    def run(self) -> RunDir | None:
        """The run of the index's model, where it is now; None of a Hugging Face model."""
        place = self.collector.model.places.get("run")
        return RunDir.at(place) if place is not None else None

    def rows(self, queries: Sequence[Query]) -> Tensor:
        """Raw query rows float32 [Q, D], at the index's own checkpoint, loss, correction and projection; for captured
        rows the mean over the run's checkpoints."""
        if self.holds_captured:
            world = self.collector.model.world
            assert world is not None
            assert self.run is not None
            return captured_query_rows(self.run, self.index.manifest, world, self.passages.tokenizer, queries)
        return query_rows(self.collector, self.passages.tokenizer, queries)

    @property
    def holds_captured(self) -> bool:
        """Whether the rows were captured in training: means over it, which no checkpoint can make again."""
        return "captured" in self.index.manifest

    def passage_rows(self, numbers: np.ndarray) -> Tensor:
        """Raw rows of passages, float32 [n, D], made again at the index's checkpoint."""
        return collect_passages(self.collector, self.passages, [int(number) for number in numbers], BATCH_TOKENS)


def open_for_queries(path: str | os.PathLike[str], world: parallel.World, moved: PlaceSettings | None = None) -> Opened:
    """Opens an index and the model that it was made with.

    Args:
        moved: where the model is, if the index cannot know.

    Raises:
        MissingError, MismatchError: the model or corpus is gone, or another one now.
    """
    index = open_index(path)
    meta = index.manifest
    model = open_model_of(index, world, moved or PlaceSettings())
    projection = ProjectionSettings(**meta["projection"])
    collector = GradientCollector(model, projection, meta["correction"], meta["loss"], meta.get("eps", EPS))
    beside = (index.path / "corpus").exists()  # of documents that no run has
    passages = open_passages(RunDir.at(index.path if beside else model.places["run"]))
    if passages.fingerprint != meta["corpus"]:
        raise MismatchError(
            f"{path} was made from another corpus",
            got=passages.fingerprint,
            expected=meta["corpus"],
            fix="restore the corpus, or make the index again",
        )
    return Opened(index, collector, passages)
