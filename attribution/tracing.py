"""From queries to passages: query rows at each index's own checkpoint, a scan of every row, and the published results.

headwater trace configs/trace/default.yaml index=runs/demo/index/headwater queries=q.jsonl out=t.jsonl
headwater trace configs/trace/default.yaml index=runs/demo/index/headwater --prompt "..." --target "..."
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from torch import Tensor

from headwater.attribution.captured import captured_query_rows
from headwater.attribution.gradients import GradientCollector
from headwater.attribution.index.store import Index, open_index
from headwater.attribution.models import model_settings_of, open_model
from headwater.attribution.queries import TraceQuery, query_rows, read_queries
from headwater.attribution.scoring import Scoring
from headwater.attribution.search import ScanOptions, ScanResult, Source, scan
from headwater.attribution.settings import ProjectionSettings, TraceSettings
from headwater.configs.errors import MismatchError, MissingError
from headwater.train import parallel
from headwater.train.artifacts import RunDir, atomic_path
from headwater.train.callbacks.ledger import read_ledger
from headwater.train.numerics import keep_freed_memory, use_onednn
from headwater.train.stream.corpus import PassageSet, open_corpus, open_passages
from headwater.train.stream.tokenizer import TextTokenizer


@dataclass(slots=True)
class Opened:
    """An index with what belongs to it: how query rows are made, and the passages' texts."""

    index: Index
    collector: GradientCollector
    passages: PassageSet
    tokenizer: TextTokenizer

    def rows(self, queries: Sequence[TraceQuery]) -> Tensor:
        """Raw query rows float32 [Q, D], at the index's own checkpoint, loss, correction and projection; for captured
        rows the mean over the run's checkpoints."""
        if "captured" in self.index.manifest:
            world = self.collector.model.world
            assert world is not None
            return captured_query_rows(self.index.manifest, world, self.tokenizer, queries)
        return query_rows(self.collector, self.tokenizer, queries)


def open_for_queries(path: str | Path, world: parallel.World) -> Opened:
    """Opens an index and the model that it was made with.

    Raises:
        MissingError, MismatchError: the model or corpus is gone, or another one now.
    """
    index = open_index(path)
    meta = index.manifest
    model = open_model(model_settings_of(meta["model"]), world)
    if model.fingerprint != meta["model_fingerprint"]:
        raise MismatchError(
            f"{path} was made with other weights than its model has now",
            got=model.fingerprint,
            expected=meta["model_fingerprint"],
            fix="restore that checkpoint, or make the index again",
        )
    collector = GradientCollector(model, ProjectionSettings(**meta["projection"]), meta["correction"], meta["loss"])
    passages, tokenizer = passages_and_tokenizer(Path(path), meta)
    if passages.fingerprint != meta["corpus"]:
        raise MismatchError(
            f"{path} was made from another corpus",
            got=passages.fingerprint,
            expected=meta["corpus"],
            fix="restore the corpus, or make the index again",
        )
    return Opened(index, collector, passages, tokenizer)


def passages_and_tokenizer(path: Path, meta: dict[str, Any]) -> tuple[PassageSet, TextTokenizer]:
    own = path / "corpus"
    if own.exists():
        return PassageSet([open_corpus(own / "base")]), TextTokenizer.from_file(path / "tokenizer.json")
    run = RunDir.at(meta["model"]["run"])
    return open_passages(run), TextTokenizer.from_file(run.tokenizer)


def scan_options(settings: TraceSettings) -> ScanOptions:
    lambda_ = settings.lambda_ if settings.lambda_ == "paper" else float(settings.lambda_)
    return ScanOptions(
        scoring=Scoring(
            curvature=settings.curvature, lambda_=lambda_, rank=settings.rank, normalize=settings.normalize
        ),
        top_k=settings.top_k,
        bottom_k=settings.bottom_k,
        codec=settings.codec,
        rescore=settings.rescore,
        candidates=settings.candidates,
        allow_incomplete=settings.allow_incomplete,
    )


def run_trace(settings: TraceSettings, prompt: str | None = None, target: str | None = None) -> list[dict[str, Any]]:
    """Traces queries; writes the results where the settings say, and returns them.

    Args:
        prompt, target: one question, instead of the file of queries.
    """
    if prompt is not None and target is not None:
        queries = [TraceQuery("query", prompt, target)]
    elif settings.queries:
        queries = read_queries(settings.queries)
    else:
        raise MissingError("there are no queries", fix="set queries=FILE.jsonl, or give --prompt and --target")
    world = parallel.start()
    try:
        keep_freed_memory()
        use_onednn()
        opened = [open_for_queries(path, world) for path in (settings.index, *settings.also)]
        weights = settings.weights or [1.0] * len(opened)
        sources = [Source(each.index, each.rows(queries), weight) for each, weight in zip(opened, weights, strict=True)]
        found = scan(sources, scan_options(settings))
        results = as_results(queries, found, opened[0], settings.query_set)
        if settings.out and world.is_main:
            write_results(settings.out, results)
    finally:
        parallel.stop()
    return results


def trace(index: str | Path, queries: Sequence[tuple[str, str] | TraceQuery], **options: Any) -> list[dict[str, Any]]:
    """Traces (prompt, target) pairs against one index; `options` are those of `TraceSettings`."""
    asked = [q if isinstance(q, TraceQuery) else TraceQuery(str(n), *q) for n, q in enumerate(queries)]
    settings = TraceSettings(index=str(index), **options)
    world = parallel.start()
    try:
        opened = open_for_queries(index, world)
        found = scan([Source(opened.index, opened.rows(asked))], scan_options(settings))
        return as_results(asked, found, opened, settings.query_set)
    finally:
        parallel.stop()


def as_results(
    queries: Sequence[TraceQuery], found: ScanResult, opened: Opened, query_set: str
) -> list[dict[str, Any]]:
    """One record a query: TrackStar's published fields, then `proponent_correct` where gold is known, and the steps at
    which each passage was seen."""
    seen = SeenSteps.of(opened)
    records = []
    for number, query in enumerate(queries):
        record: dict[str, Any] = {
            "example_id": query.example_id,
            "query_set": query_set,
            "inputs_plaintext": query.prompt,
            "targets_plaintext": query.target,
        }
        ends = (
            ("proponent", found.passages[number], found.scores[number]),
            ("opponent", found.bottom_passages[number], found.bottom_scores[number]),
        )
        for end, passages, scores in ends:
            kept = passages >= 0
            numbers = passages[kept].tolist()
            ids = [opened.passages.ids(n, n + 1)[0] for n in numbers]
            record[f"{end}s"] = [opened.passages.text(n, opened.tokenizer) for n in numbers]
            record[f"{end}_ids"] = ids
            record[f"{end}_scores"] = [float(score) for score in scores[kept]]
            if seen is not None:
                record[f"{end}_seen_steps"] = [seen.steps(n) for n in numbers]
        for key in ("fact_id", "relation"):
            if key in query.record:
                record[key] = query.record[key]
        if query.gold:
            record["proponent_correct"] = [name in query.gold for name in record["proponent_ids"]]
        if not found.complete:
            record["incomplete_index"] = True
        records.append(record)
    return records


@dataclass(slots=True)
class SeenSteps:
    """The steps at which each passage was seen up to the index's checkpoint."""

    passages: np.ndarray
    step_of: np.ndarray

    @classmethod
    def of(cls, opened: Opened) -> SeenSteps | None:
        model = opened.index.manifest["model"]
        if model["kind"] != "headwater":
            return None
        table = read_ledger(RunDir.at(model["run"]).ledger)
        table = table.filter(pc.less_equal(table["step"], model["step"]))
        passages, steps = np.asarray(table["passage"]), np.asarray(table["step"])
        order = np.lexsort((steps, passages))
        return cls(passages[order], steps[order])

    def steps(self, passage: int) -> list[int]:
        start, stop = np.searchsorted(self.passages, [passage, passage + 1])
        return sorted(set(self.step_of[start:stop].tolist()))


def write_results(path: str | Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes results as JSONL, atomically."""
    with atomic_path(path) as part, open(part, "w", encoding="utf-8") as file:
        for record in results:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
