"""An index with what belongs to it: the model that it was made with, its passages and their tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from headwater.attribution.index.reader import Index, open_index
from headwater.attribution.models.base import Example
from headwater.attribution.models.opening import model_settings_of, open_model
from headwater.attribution.rows.collector import GradientCollector, collect
from headwater.attribution.settings import ProjectionSettings
from headwater.attribution.tracing.queries import Query
from headwater.attribution.tracing.query_rows import captured_query_rows, query_rows
from headwater.configs.errors import MismatchError
from headwater.train import parallel
from headwater.train.artifacts import RunDir, run_of_index
from headwater.train.stream.corpus import PassageSet, open_passages

BATCH_TOKENS = 2048
"""Tokens of a batch whose rows are made."""


@dataclass(slots=True)
class Opened:
    """An index with what belongs to it: how query rows are made, and the passages' texts."""

    index: Index
    collector: GradientCollector
    passages: PassageSet

    def rows(self, queries: Sequence[Query]) -> Tensor:
        """Raw query rows float32 [Q, D], at the index's own checkpoint, loss, correction and projection; for captured
        rows the mean over the run's checkpoints."""
        if self.holds_captured:
            world = self.collector.model.world
            assert world is not None
            return captured_query_rows(self.index.manifest, world, self.passages.tokenizer, queries)
        return query_rows(self.collector, self.passages.tokenizer, queries)

    @property
    def holds_captured(self) -> bool:
        """Whether the rows were captured in training: means over it, which no checkpoint can make again."""
        return "captured" in self.index.manifest

    def passage_rows(self, numbers: np.ndarray) -> Tensor:
        """Raw rows of passages, float32 [n, D], made again at the index's checkpoint."""
        examples = [Example(self.passages.tokens(int(number)).astype(np.int64)) for number in numbers]
        return collect(self.collector, examples, BATCH_TOKENS)


def open_for_queries(path: str | os.PathLike[str], world: parallel.World) -> Opened:
    """Opens an index and the model that it was made with.

    Raises:
        MissingError, MismatchError: the model or corpus is gone, or another one now.
    """
    index = open_index(path)
    meta = index.manifest
    if meta["model"]["kind"] == "headwater":
        meta["model"] = {**meta["model"], "run": str(run_of_index(Path(path), meta["model"]["run"]))}
    model = open_model(model_settings_of(meta["model"]), world)
    if model.fingerprint != meta["model_fingerprint"]:
        raise MismatchError(
            f"{path} was made with other weights than its model has now",
            got=model.fingerprint,
            expected=meta["model_fingerprint"],
            fix="restore that checkpoint, or make the index again",
        )
    collector = GradientCollector(model, ProjectionSettings(**meta["projection"]), meta["correction"], meta["loss"])
    passages = passages_of_index(Path(path), meta)
    if passages.fingerprint != meta["corpus"]:
        raise MismatchError(
            f"{path} was made from another corpus",
            got=passages.fingerprint,
            expected=meta["corpus"],
            fix="restore the corpus, or make the index again",
        )
    return Opened(index, collector, passages)


def passages_of_index(path: Path, meta: dict[str, Any]) -> PassageSet:
    """The passages that an index was made of: kept beside it, or its run's."""
    return open_passages(RunDir.at(path if (path / "corpus").exists() else meta["model"]["run"]))
