"""An index with what belongs to it: the model that it was made with, its passages and their tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from headwater.attribution.index.reader import Index, open_index
from headwater.attribution.models.base import EPS
from headwater.attribution.rows.collector import GradientCollector, collect_passages
from headwater.attribution.settings import PlaceSettings, ProjectionSettings
from headwater.attribution.tracing.its_model import open_model_of, places_of
from headwater.attribution.tracing.queries import Query
from headwater.attribution.tracing.query_rows import captured_query_rows, query_rows
from headwater.configs.errors import MismatchError, MissingError, UserError
from headwater.train import parallel
from headwater.train.artifacts import RunDir
from headwater.train.stream.passages import PassageSet, open_passages

BATCH_TOKENS = 2048
"""Tokens of a batch whose rows are made."""


@dataclass(slots=True)
class Opened:
    """An index with what belongs to it: how query rows are made, and the passages' texts.

    Attributes:
        made_with: what makes rows as those of the index; None if it was opened without its model.
        run: the run of the index's model, where it is now; None of a Hugging Face model.
    """

    index: Index
    made_with: GradientCollector | None
    passages: PassageSet
    run: RunDir | None
    world: parallel.World

    @property
    def collector(self) -> GradientCollector:
        """What makes rows as those of the index.

        Raises:
            UserError: it was opened without its model.
        """
        if self.made_with is None:
            raise UserError(f"{self.index.path} was opened without its model", fix="open it with models=True")
        return self.made_with

    def rows(self, queries: Sequence[Query]) -> Tensor:
        """Raw query rows float32 [Q, D], at the index's own checkpoint, loss, correction and projection; for captured
        rows the mean over the run's checkpoints. Replicas of the model share the queries out; all have all rows."""
        if self.holds_captured:
            assert self.run is not None
            return captured_query_rows(self.run, self.index.manifest, self.world, self.passages.tokenizer, queries)
        return query_rows(self.collector, self.passages.tokenizer, queries, self.world)

    @property
    def holds_captured(self) -> bool:
        """Whether the rows were captured in training: means over it, which no checkpoint can make again."""
        return "captured" in self.index.manifest

    def passage_rows(self, numbers: np.ndarray) -> Tensor:
        """Raw rows of passages, float32 [n, D], made again at the index's checkpoint."""
        return collect_passages(self.collector, self.passages, [int(number) for number in numbers], BATCH_TOKENS)


def open_for_queries(
    path: str | os.PathLike[str], world: parallel.World, moved: PlaceSettings | None = None, *, model: bool = True
) -> Opened:
    """Opens an index and the model that it was made with.

    Args:
        moved: where the model is, if the index cannot know.
        model: whether the model is opened; else there are its passages alone.

    Raises:
        MissingError, MismatchError: the model or corpus is gone, or another one now.
    """
    index, moved = open_index(path), moved or PlaceSettings()
    meta, collector = index.manifest, None
    if model:
        found = open_model_of(index, world, moved)
        projection = ProjectionSettings(**meta["projection"])
        collector = GradientCollector(found, projection, meta["correction"], meta["loss"], meta.get("eps", EPS))
        places = [found.places["run"]] if "run" in found.places else []
    else:
        places = [place for place in places_of(index, moved).get("run", []) if place.is_dir()]
    beside = (index.path / "corpus").exists()  # of documents that no run has
    passages = passages_in([index.path] if beside else places, index)
    return Opened(index, collector, passages, RunDir.at(places[0]) if places else None, world)


def passages_in(places: Sequence[Path], index: Index) -> PassageSet:
    """The passages of an index, from the first of the directories that holds them.

    Raises:
        MissingError, MismatchError: there are none, or others.
    """
    expected, got = index.manifest["corpus"], ""
    for place in places:
        if len(places) > 1 and not (RunDir.at(place).corpus / "base").exists():
            continue
        passages = open_passages(RunDir.at(place))
        got = passages.fingerprint
        if got == expected:
            return passages
    if not got:
        raise MissingError(
            f"the corpus that {index.path} was made from is not there", fix="set model.run=DIR to where its run is"
        )
    raise MismatchError(
        f"{index.path} was made from another corpus",
        got=got,
        expected=expected,
        fix="restore the corpus, or make the index again",
    )
