"""Rankings that were made elsewhere: result files of `headwater trace` and `evaluate`, of PAIR's format, matrices.

Results are joined by the questions' ids. What a list does not name stands behind everything that it names, in the
corpus's last place: a gold passage that a list of 100 leaves out counts as not found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.golds import ids_of_texts
from headwater.attribution.evaluation.ranking import (
    AT_ONCE,
    DEPTH,
    Passages,
    Ranking,
    ScoreRanking,
    numbers_of_lists,
)
from headwater.attribution.tracing.queries import Query
from headwater.configs.errors import CorruptError, MismatchError, MissingError


def outside_rankings(path: str | Path, queries: Sequence[Query], passages: Passages) -> list[Ranking]:
    """One ranking per query.

    Args:
        path: `.npy`: a score for every query and passage, [queries, passages] or [passages, queries], in the order of
            the query file and of the index; else JSONL, one object a query with `example_id` and `ranking` or
            `proponent_ids` (ids, best first) or `proponents` (texts).
        queries: with ids for gold.

    Raises:
        MissingError: no such file.
        CorruptError: it is not of this form.
        MismatchError: it is of other questions or other passages.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"results {path} are missing", fix="give a .jsonl or .npy file")
    if path.suffix == ".npy":
        return ranked_by_matrix(scores_of(path, len(queries), len(passages)), queries, passages)
    listed = read_lists(path)
    left = [query.example_id for query in queries if query.example_id not in listed]
    if left:
        raise MismatchError(
            f"{path} does not answer every question",
            got=f"{len(left)} of {len(queries)} are not there, such as {left[0]}",
            expected="one line for each example_id of the queries",
            fix="give results of these queries",
        )
    texts = {entry for ids, is_text in listed.values() if is_text for entry in ids}
    names = ids_of_texts(texts, passages)
    unknown = sorted(texts - names.keys())
    if unknown:
        raise MismatchError(
            f"{path} names {len(unknown)} texts that are no passages of this corpus",
            got=unknown[0][:80],
            expected="texts as they stand in the corpus",
            fix="give results over the corpus of the index",
        )
    return [ranked(query, *listed[query.example_id], names, passages) for query in queries]


def scores_of(path: Path, queries: int, passages: int) -> np.ndarray:
    """A matrix of scores, [queries, passages]."""
    try:
        scores = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise CorruptError(f"{path} cannot be read", got=error, expected="a .npy file of numbers") from None
    if scores.shape == (queries, passages):
        return scores
    if scores.shape == (passages, queries):
        return scores.T
    raise MismatchError(
        f"{path} is of another shape",
        got=scores.shape,
        expected=f"({queries}, {passages}): a score for every query and passage",
        fix="give scores of these queries over the corpus of the index",
    )


def ranked_by_matrix(scores_QN: np.ndarray, queries: Sequence[Query], passages: Passages) -> list[Ranking]:
    """The rankings by a matrix that is mapped from a file: gone through once, some passages at a time."""
    golds = numbers_of_lists([query.gold for query in queries], passages)
    made = [
        ScoreRanking(query, passages, gold, np.asarray(row_N[gold]))
        for query, gold, row_N in zip(queries, golds, scores_QN, strict=True)
    ]
    some = max(AT_ONCE * 8 // max(len(queries), 1), 1)
    for start in range(0, len(passages), some):
        for each, part_N in zip(made, np.ascontiguousarray(scores_QN[:, start : start + some]), strict=True):
            each.add(start, part_N)
    return [each.ranking() for each in made]


def read_lists(path: Path) -> dict[str, tuple[list[str], bool]]:
    """Of each question what is listed, best first, and whether these are texts."""
    listed: dict[str, tuple[list[str], bool]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record: dict[str, Any] = json.loads(line)
            key = next(key for key in ("ranking", "proponent_ids", "proponents") if key in record)
            entries = record[key]
            if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
                raise TypeError(f"{key} is not a list of texts")
            listed[str(record["example_id"])] = (list(dict.fromkeys(entries)), key == "proponents")
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
            raise CorruptError(
                f"{path}, line {number} is not a result",
                got=f"{type(error).__name__}: {error}",
                expected='{"example_id": ..., "proponent_ids": [...]}, or `ranking`, or `proponents` with texts',
            ) from None
    return listed


def ranked(query: Query, entries: list[str], is_text: bool, names: dict[str, list[str]], passages: Passages) -> Ranking:
    """A list as a ranking; a text stands for the first passage that has it."""
    ids = [names[entry][0] for entry in entries] if is_text else entries
    places = {name: place for place, name in enumerate(ids)}
    last = len(passages) - len(query.gold)
    ranks = [places.get(gold, last + number) for number, gold in enumerate(query.gold)]
    return Ranking(query.example_id, tuple(ids[:DEPTH]), tuple(ranks))
