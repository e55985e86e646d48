"""Results as they are written: TrackStar's published fields, and ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.search.duplicates import Dropped
from headwater.attribution.search.options import ScanResult
from headwater.attribution.tracing.opened import Opened
from headwater.attribution.tracing.queries import Query
from headwater.attribution.tracing.seen import SeenSteps
from headwater.train.artifacts import atomic_path


@dataclass(slots=True)
class Extras:
    """What was asked for beside the passages and their scores.

    Attributes:
        dropped: near-duplicates that were collapsed, at the top and at the bottom.
        token_scores: per passage, and per query that shows it, float32 [T].
    """

    dropped: tuple[Dropped, Dropped] | None = None
    token_scores: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)


def as_results(
    queries: Sequence[Query], found: ScanResult, opened: Opened, query_set: str, extras: Extras | None = None
) -> list[dict[str, Any]]:
    """One record a query: TrackStar's published fields, then `proponent_correct` where gold is known, and the steps at
    which each passage was seen; with `extras` also the ids of each passage's near-duplicates, its tokens and their
    scores."""
    shown = np.concatenate([found.passages.ravel(), found.bottom_passages.ravel()])
    shown = np.unique(shown[shown >= 0])
    seen, extras = SeenSteps.of(opened, shown), extras or Extras()
    names = dict(zip(shown.tolist(), opened.passages.ids_of(shown), strict=True))
    records = []
    for number, query in enumerate(queries):
        record: dict[str, Any] = {
            "example_id": query.example_id,
            "query_set": query_set,
            "inputs_plaintext": query.prompt,
            "targets_plaintext": query.target,
        }
        if query.against:
            record["against_plaintext"] = query.against
        ends = (
            ("proponent", found.passages[number], found.scores[number]),
            ("opponent", found.bottom_passages[number], found.bottom_scores[number]),
        )
        for place, (end, passages, scores) in enumerate(ends):
            kept = passages >= 0
            numbers = passages[kept].tolist()
            record |= listed_passages(end, numbers, scores[kept], opened, names, seen)
            if extras.dropped is not None:
                dropped = extras.dropped[place][number]
                record[f"{end}_duplicates"] = [[opened.passages.id_of(other) for other in dropped[n]] for n in numbers]
            if extras.token_scores:
                tokens = [opened.passages.tokens(n).tolist() for n in numbers]
                record[f"{end}_tokens"] = [opened.passages.tokenizer.pieces(each) for each in tokens]
                record[f"{end}_token_scores"] = [extras.token_scores[n, number].tolist() for n in numbers]
        for key in ("fact_id", "relation", "mean_of"):
            if key in query.record:
                record[key] = query.record[key]
        if query.gold:
            record["proponent_correct"] = [name in query.gold for name in record["proponent_ids"]]
        if not found.complete:
            record["incomplete_index"] = True
        records.append(record)
    return records


def listed_passages(
    end: str, numbers: list[int], scores: np.ndarray, opened: Opened, names: dict[int, str], seen: SeenSteps | None
) -> dict[str, Any]:
    """Texts, ids, scores and steps of one end of a query's results."""
    record: dict[str, Any] = {
        f"{end}s": [opened.passages.text(n) for n in numbers],
        f"{end}_ids": [names[n] for n in numbers],
        f"{end}_scores": [float(score) for score in scores],
    }
    if seen is not None:
        record[f"{end}_seen_steps"] = [seen.steps(n) for n in numbers]
    return record


def write_results(path: str | Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes results as JSONL, atomically."""
    with atomic_path(path) as part, open(part, "w", encoding="utf-8") as file:
        for record in results:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
