"""`Attributor`: an index (or several) and its model, opened once and then asked as often as one likes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from headwater.attribution.models.base import Example
from headwater.attribution.rows.collector import collect
from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.duplicates import Collapse, scan_collapsed
from headwater.attribution.search.full_ranking import ranked, score_all
from headwater.attribution.search.options import Exclusion, ScanOptions, ScanResult, Source
from headwater.attribution.search.scan import Sink, scan, search
from headwater.attribution.search.score_files import score_file
from headwater.attribution.search.scorer import Scoring
from headwater.attribution.search.where import Where
from headwater.attribution.settings import PlaceSettings, TraceSettings, curvature_used
from headwater.attribution.tracing.opened import BATCH_TOKENS, Opened, open_for_queries
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.attribution.tracing.results import Extras, as_results
from headwater.attribution.tracing.saved_rows import QueryRows, is_rows_file, load_rows
from headwater.attribution.tracing.token_scores import TokenScorer, score_tokens
from headwater.configs import Problem
from headwater.configs.errors import ConfigError
from headwater.train import parallel
from headwater.train.numerics import keep_freed_memory, use_onednn
from headwater.train.parallel import World
from headwater.train.settings import ParallelSettings
from headwater.train.stream.columns import PassageColumns
from headwater.train.stream.passages import PassageSet

Asked = Sequence[Query | tuple[str, str]] | QueryRows
"""Queries, or (prompt, target) pairs, or queries with the rows that were made of them."""


class Attributor:
    """Indexes of one corpus with the models they were made with, ready to be asked. Use `open`.

    ```python
    from headwater.attribution import Attributor, Query

    with Attributor.open("runs/demo/index/headwater") as attributor:
        # Which passages taught this? One record a question, best passages first.
        (record,) = attributor.trace([("The capital of Peru is", "Lima")], top_k=5)
        for name, score in zip(record["proponent_ids"], record["proponent_scores"], strict=True):
            print(f"{score:+.3f}  {name}  seen at {record['proponent_seen_steps'][0]}")

        # The same question against another answer, without the task's curvature.
        attributor.trace([Query("q", "The capital of Peru is", "Lima", against="Quito")], curvature="train")

        # Every passage's score, and the gradient rows behind it.
        scores_QN = attributor.scores([("The capital of Peru is", "Lima")])
        rows_QD = attributor.rows([("The capital of Peru is", "Lima")])
    ```

    With several indexes (checkpoints, losses, captured rows) the scores are added, weighted.

    Attributes:
        opened: the indexes, each with its model and the passages.
        weights: of their scores.
        world: the process groups.
    """

    def __init__(self, opened: Sequence[Opened], weights: Sequence[float], world: World, *, owns_world: bool) -> None:
        self.opened, self.weights, self.world = list(opened), list(weights), world
        self._owns_world = owns_world

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        also: Sequence[str | os.PathLike[str]] = (),
        weights: Sequence[float] = (),
        model: PlaceSettings | None = None,
        world: World | None = None,
        layout: ParallelSettings | None = None,
        models: bool = True,
    ) -> Attributor:
        """Opens an index and the model that it was made with.

        Args:
            path: the index directory.
            also: further indexes of the same passages.
            weights: one per index; all 1 if not given.
            model: where their model is, if they cannot know it.
            world: process groups; by default those that this process has joined, or else new ones, left by `close`.
            layout: of a model that is too large for one process, if the process groups are to be made; each process of
                the job opens and asks alike.
            models: whether models are opened; without, saved query rows alone can be asked with.

        Raises:
            MissingError, MismatchError: an index, its model or its corpus is gone, or another one now.
        """
        found = world or parallel.joined()
        layout = layout or ParallelSettings()
        joined = found or parallel.start(tensor=layout.tensor, pipeline=layout.pipeline)
        try:
            keep_freed_memory()
            use_onednn()
            opened = [open_for_queries(each, joined, model, model=models) for each in (path, *also)]
            return cls(opened, weights or [1.0] * len(opened), joined, owns_world=found is None)
        except BaseException:
            if found is None:
                parallel.stop()
            raise

    @property
    def passages(self) -> PassageSet:
        """The passages that are searched."""
        return self.opened[0].passages

    def rows(self, asked: Sequence[Query | tuple[str, str] | Example], index: int = 0) -> Tensor:
        """Raw gradient rows, float32 [n, D], made as those of an index were made.

        Args:
            asked: queries or (prompt, target) pairs, with the loss on the target; or `Example`s: tokens of one's own.
            index: which of the opened indexes.

        Raises:
            UserError: one is longer than the model's context.
        """
        opened = self.opened[index]
        examples = [each for each in asked if isinstance(each, Example)]
        if not examples:
            return opened.rows(as_queries(asked))  # type: ignore[arg-type]
        if len(examples) < len(asked):
            raise TypeError("rows of queries and of examples are asked for apart")
        return collect(opened.collector, examples, BATCH_TOKENS)

    def asked(self, asked: Asked) -> QueryRows:
        """The queries with their rows for each index, as saved rows are."""
        if isinstance(asked, QueryRows):
            return asked
        queries = as_queries(asked)
        return QueryRows(queries, [each.rows(queries) for each in self.opened])

    def saved(self, path: str | os.PathLike[str], queries: Sequence[Query] | None = None) -> QueryRows:
        """Query rows of a file (tracing/saved_rows.py), for these indexes; arguments and errors as of `load_rows`."""
        return load_rows(Path(path), [each.index for each in self.opened], queries)

    def sources(self, asked: Asked, task: Asked | None = None) -> list[Source]:
        """What a scan takes: each index with the queries' rows for it.

        Args:
            task: other queries, which stand for the task whose curvature the scores are made with.
        """
        rows = self.asked(asked).rows
        standing = self.asked(task).rows if task is not None else [None] * len(rows)
        return [
            Source(
                each.index,
                rows_QD,
                weight,
                task_queries=task_QD,
                recompute=None if each.holds_captured or each.made_with is None else each.passage_rows,
            )
            for each, rows_QD, task_QD, weight in zip(self.opened, rows, standing, self.weights, strict=True)
        ]

    def search(
        self,
        asked: Asked,
        options: ScanOptions | None = None,
        *,
        task: Asked | None = None,
        exclude: Exclusion | None = None,
    ) -> ScanResult:
        """The best and the worst passages of every query, as numbers; arguments as of `sources` and `scan`."""
        return scan(self.sources(asked, task), options, exclude=exclude)

    def scores(self, asked: Asked, scoring: Scoring | None = None) -> np.ndarray:
        """The score of every passage, float32 [Q, passages]; for small corpora."""
        return score_all(self.sources(asked), ScanOptions(scoring=scoring or Scoring()))

    def ranked(
        self, asked: Asked, golds: Sequence[Sequence[int]], options: ScanOptions | None = None
    ) -> tuple[ScanResult, list[np.ndarray]]:
        """`search`, and the exact place (from 0) of given passages in the full ranking of each query; in one pass."""
        found, places = ranked(self.sources(asked), golds, options)
        assert found is not None
        return found, places

    def where(self, text: str) -> Where:
        """A condition on the passages, for `ScanOptions.where` (search/where.py): `source == "wiki" and year >= 1990`.

        Raises:
            UserError: it is none, or names a column that the passages have not.
        """
        return Where(text, PassageColumns(self.passages))

    def trace(self, asked: Asked, settings: TraceSettings | None = None, **options: Any) -> list[dict[str, Any]]:
        """Finds the passages behind every query.

        Args:
            asked: the queries, or their saved rows.
            settings: how to search; what they say of indexes, queries and files is not read here.
            options: single settings, in place of those in `settings`.

        Returns:
            One record a query, as `headwater trace` writes them (tracing/results.py), on every rank. `curvature` in it
            says what the scores were made with: fewer than ten queries are no task.

        Raises:
            ConfigError: an option is not allowed.
        """
        settings = settings or TraceSettings(index=str(self.opened[0].index.path))
        settings = replace(settings, **options)
        problems = [*settings.problems(), *self._alone(settings)]
        if problems:
            raise ConfigError(problems, "the trace")
        where = self.where(settings.where) if settings.where else None
        given = self.asked(asked)
        standing = self._task(settings.task) if settings.task else given
        used = curvature_used(settings.curvature, len(standing.queries))
        if used != settings.curvature:
            settings = replace(settings, curvature=used, task="")
        if settings.mean or settings.group:
            given = given.mean(unit=settings.normalize, group=settings.group, name=settings.query_set)
        task = standing if used == "task" and standing is not given else None
        look_for = replace(scan_options(settings), where=where)
        found, extras = self._searched(settings, look_for, self.sources(given, task), given.queries)
        records = as_results(given.queries, found, self.opened[0], settings.query_set, extras)
        about: dict[str, Any] = {"kind": settings.curvature}
        if settings.curvature == "task":
            about |= {"queries": len(standing.queries), "weight": found.lambdas}
        return [{**record, "curvature": about} for record in records]

    def _task(self, path: str) -> QueryRows:
        return self.saved(path) if is_rows_file(path) else self.asked(read_queries(path))

    def _alone(self, settings: TraceSettings) -> Iterator[Problem]:
        """What is asked that wants a model, and a whole one on each of the processes, which share the work out."""
        if any(each.made_with is None for each in self.opened):
            if settings.tokens:
                yield Problem("tokens", True, "false without a model", "open the indexes with their models")
            if settings.rescore == "recompute":
                yield Problem("rescore", "recompute", "a stored codec without a model", "open the indexes with theirs")
        if self.world.tensor * self.world.pipeline > 1:
            fix = "trace with the model on one process, or leave it out"
            if settings.tokens:
                yield Problem("tokens", True, "false where a model is shared out over processes", fix)
            if settings.rescore == "recompute":
                yield Problem("rescore", "recompute", "a stored codec where a model is shared out", fix)

    def _searched(
        self, settings: TraceSettings, options: ScanOptions, sources: list[Source], queries: Sequence[Query]
    ) -> tuple[ScanResult, Extras]:
        """The scan, with near-duplicates collapsed, tokens scored and all scores written if that is asked."""
        scorer, extras = None, Extras()
        if settings.tokens:  # before the scan, so that what has no token scores is refused at once
            scorer = TokenScorer(sources, [each.collector for each in self.opened], options.scoring)
        work = Scan(sources, options)
        with ExitStack() as stack:
            sinks: list[Sink] = []
            if settings.scores:
                names = [query.example_id for query in queries]
                sinks.append(stack.enter_context(score_file(settings.scores, work, names, self.passages.ids)))
            if settings.duplicates == "collapse":
                collapse = Collapse(self.passages.text, settings.similar)
                found, *dropped = scan_collapsed(sources, options, collapse, sinks)
                extras.dropped = (dropped[0], dropped[1])
            else:
                found = search(work, sinks=sinks)
        if scorer is not None:
            extras.token_scores = score_tokens(found, scorer, self.passages)
        return found, extras

    def close(self) -> None:
        """Lets go of the models and the files; leaves the process groups if `open` made them."""
        for each in self.opened:
            each.index.close()
        self.opened = []
        if self._owns_world:
            parallel.stop()
            self._owns_world = False

    def __enter__(self) -> Attributor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_queries(asked: Sequence[Query | tuple[str, str]]) -> list[Query]:
    """Pairs become queries that are named by their places."""
    return [each if isinstance(each, Query) else Query(str(number), *each) for number, each in enumerate(asked)]


def scan_options(settings: TraceSettings) -> ScanOptions:
    """What a scan is asked, of a trace's settings."""
    return ScanOptions(
        scoring=Scoring(
            curvature=settings.curvature,
            task_weight=settings.task_weight,
            rank=settings.rank,
            normalize=settings.normalize,
        ),
        top_k=settings.top_k,
        bottom_k=settings.bottom_k,
        codec=settings.codec,
        rescore=settings.rescore,
        candidates=settings.candidates,
        allow_incomplete=settings.allow_incomplete,
        device=settings.device,
    )
