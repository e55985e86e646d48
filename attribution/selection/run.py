"""`headwater select`: a whole corpus scored for a task, and what serves it best written out.

    headwater select select/default index=runs/demo/index/headwater queries=q.jsonl share=0.5 out=chosen.jsonl
    headwater select select/default index=runs/hf-index queries=q.jsonl top=1000 unit=document out=chosen.parquet

The task is a file of queries. A passage's score is the mean of its scores for them, or the highest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.search.options import ScanOptions
from headwater.attribution.search.scorer import Scoring
from headwater.attribution.selection.scores import (
    Documents,
    chosen,
    document_name,
    documents_of,
    sources_of,
    task_scores,
)
from headwater.attribution.selection.settings import SelectSettings
from headwater.attribution.tracing.attributor import Attributor
from headwater.attribution.tracing.queries import read_queries
from headwater.configs.errors import UserError
from headwater.train.artifacts import atomic_path
from headwater.train.stream.passages import PassageSet

ROWS_AT_ONCE = 4096
"""Records of a row group of Parquet."""


@dataclass(frozen=True, slots=True)
class Selected:
    """What was chosen.

    Attributes:
        taken, of: how many, and of how many, by source.
        lowest: the least score that was taken.
    """

    out: Path
    taken: dict[str, int]
    of: dict[str, int]
    lowest: float


def run_select(settings: SelectSettings) -> Selected:
    """Scores every passage for the task, and writes what was chosen, best first.

    Raises:
        UserError: `out` is there already.
        MissingError, MismatchError: of the index, its model or the queries.
    """
    out = Path(settings.out)
    if out.exists():
        raise UserError(f"{out} is there already", fix="choose another out=, or remove it")
    queries = read_queries(settings.queries)
    scoring = Scoring(curvature=settings.curvature, task_weight=settings.task_weight, normalize=settings.normalize)
    with Attributor.open(settings.index, also=settings.also, weights=settings.weights) as attributor:
        passages = attributor.passages
        scan = ScanOptions(scoring=scoring, codec=settings.codec)
        scores_N = task_scores(attributor.sources(queries), scan, settings.score)
        names, source_N = sources_of(passages)
        documents, scores_U, source_U = None, scores_N, source_N
        if settings.unit == "document":
            documents = documents_of(passages)
            scores_U = documents.scores(scores_N, settings.document_score)
            source_U = source_N[documents.first_U]
        groups_U = source_U if settings.per_source else None
        found = chosen(scores_U, groups_U, top=settings.top, share=settings.share)
        if attributor.world.is_main:
            write(out, records(passages, documents, found, scores_U, [names[n] for n in source_U[found]]))
    return Selected(
        out, _counted(names, source_U[found]), _counted(names, source_U), float(scores_U[found].min(initial=np.inf))
    )


def _counted(names: list[str], sources: np.ndarray) -> dict[str, int]:
    counts = np.bincount(sources, minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def records(
    passages: PassageSet, documents: Documents | None, found: np.ndarray, scores_U: np.ndarray, sources: list[str]
) -> Iterator[dict[str, Any]]:
    """One record for each that was chosen: id, source, score, text; of a document also how many passages it has."""
    members: dict[int, list[int]] = {}
    if documents is not None:
        wanted = np.isin(documents.of_N, found)
        for number in np.flatnonzero(wanted).tolist():
            members.setdefault(int(documents.of_N[number]), []).append(number)
    for place, source in zip(found.tolist(), sources, strict=True):
        record: dict[str, Any] = {"score": float(scores_U[place]), "source": source}
        if documents is None:
            name = passages.id_of(place)
            yield {"id": name, "document": document_name(name), **record, "text": passages.text(place)}
        else:
            numbers = in_order(passages, members[place])
            name = document_name(passages.id_of(numbers[0]))
            yield {"id": name, "passages": len(numbers), **record, "text": text_of(passages, numbers)}


def in_order(passages: PassageSet, numbers: list[int]) -> list[int]:
    """A document's passages as they follow one another in it."""

    def place(number: int) -> tuple[int, int]:
        last = passages.id_of(number).rpartition("#")[2]
        return (int(last) if last.isdecimal() else 0, number)

    return sorted(numbers, key=place)


def text_of(passages: PassageSet, numbers: list[int]) -> str:
    """The text of a document, of the passages that the corpus holds of it: their tokens joined, so that a cut within a
    word leaves no trace."""
    parts = [passages.tokens(number) for number in numbers]
    end = passages.locate(numbers[-1])[0].manifest.get("eos_id")
    if parts[-1][-1] == end:
        parts[-1] = parts[-1][:-1]
    return passages.tokenizer.decode(np.concatenate(parts)).strip()


def write(out: Path, lines: Iterator[dict[str, Any]]) -> None:
    """Writes records as JSON lines or, if the name says so, as Parquet; atomically."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as part:
        if out.suffix == ".parquet":
            _write_parquet(part, lines)
            return
        with open(part, "w", encoding="utf-8") as file:
            for record in lines:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    import itertools

    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None
    while group := list(itertools.islice(lines, ROWS_AT_ONCE)):
        table = pa.Table.from_pylist(group)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()
