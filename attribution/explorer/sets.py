"""A set of answers: a file of results or of rankings, held as columns; its texts stay in the file until they are read.

What is kept of every query is a few numbers and a short label, and which passages it names, by number: a file of ten
thousand queries takes some megabytes. Read from the published format (`inputs_plaintext`, `targets_plaintext`,
`proponents`, `proponent_scores`; ids, opponents, steps and the rest where they are) and from evaluation/METHOD.jsonl.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from headwater.attribution.explorer.limits import LABEL_CHARACTERS
from headwater.configs.errors import CorruptError, MismatchError, MissingError

ENDS = ("proponent", "opponent")
UNKNOWN_RANK = -1
LARGEST = 1e38
"""Of a score; what is beyond it, or no number, is none."""


@dataclass(slots=True)
class Found:
    """A passage in an answer; None where the file does not say."""

    place: int
    id: str
    score: float | None = None
    text: str | None = None
    gold: bool | None = None
    seen: list[int] | None = None
    tokens: list[str] | None = None
    token_scores: list[float] | None = None
    duplicates: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Answer:
    """One query with the passages at both ends."""

    id: str
    prompt: str
    target: str
    against: str = ""
    relation: str = ""
    proponents: list[Found] = field(default_factory=list)
    opponents: list[Found] = field(default_factory=list)
    complete: bool = True


@dataclass
class Postings:
    """Who names whom: one entry for each passage of each answer.

    Attributes:
        names: passage ids, each once.
        passage: into `names`, int32 [n].
        query: int32 [n], ascending.
        place: from 0, int16 [n].
        score: float32 [n]; NaN where there is none.
        opponent: bool [n].
    """

    names: list[str]
    passage: np.ndarray
    query: np.ndarray
    place: np.ndarray
    score: np.ndarray
    opponent: np.ndarray

    @cached_property
    def _by_passage(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.passage, kind="stable")
        return order, np.searchsorted(self.passage[order], np.arange(len(self.names) + 1))

    @cached_property
    def number_of(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def of_passage(self, name: str) -> np.ndarray:
        """Entries that name a passage."""
        number = self.number_of.get(name)
        if number is None:
            return np.empty(0, np.int64)
        order, starts = self._by_passage
        return order[starts[number] : starts[number + 1]]

    def of_query(self, query: int, opponents: bool = False) -> np.ndarray:
        """Entries of a query's answer, best first."""
        start, stop = np.searchsorted(self.query, [query, query + 1])
        entries = np.arange(start, stop)
        return entries[self.opponent[start:stop] == opponents]


@dataclass
class AnswerSet:
    """The answers of one method to its queries.

    Attributes:
        name: in addresses. `label`: on pages.
        kind: `results` or `ranking` (ids and ranks alone).
        ids: of the queries, distinct.
        prompts, targets, relations: text, cut to a label's length.
        gold_ranks: 0-based ranks of the gold passages over the whole corpus; None where they are not known.
        first_gold: 0-based rank of the first gold passage, int64 [Q]; -1 where none is known to be found.
        depth: how many proponents the deepest answer names.
    """

    name: str
    label: str
    kind: str
    path: Path
    ids: list[str]
    prompts: pa.Array
    targets: pa.Array
    relations: pa.Array
    gold_ranks: list[tuple[int, ...]] | None
    first_gold: np.ndarray
    gold_found: np.ndarray
    postings: Postings
    offsets: np.ndarray
    lengths: np.ndarray
    depth: int
    stamp: tuple[int, int]
    incomplete: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def best_score(self) -> np.ndarray:
        """Score of each query's first proponent, float32 [Q]."""
        best = np.full(len(self), np.nan, np.float32)
        first = (self.postings.place == 0) & ~self.postings.opponent
        best[self.postings.query[first]] = self.postings.score[first]
        return best

    def row(self, query: str) -> int:
        """The row of a query.

        Raises:
            MissingError: the set has no such query.
        """
        row = self.row_of.get(query)
        if row is None:
            raise MissingError(f"{self.label} has no question {query[:80]!r}", fix="choose one from the list")
        return row

    def answer(self, row: int) -> Answer:
        """One answer, read from the file.

        Raises:
            MissingError, MismatchError, CorruptError: the file is gone, or another one now.
        """
        require_same(self.path, self.stamp)
        with open(self.path, "rb") as file:
            file.seek(int(self.offsets[row]))
            line = file.read(int(self.lengths[row]))
        record = parsed(line, self.path, row + 1)
        return as_answer(record, self.ids[row]) if self.kind == "results" else self._ranked(row)

    def _ranked(self, row: int) -> Answer:
        entries = self.postings.of_query(row)
        found = [
            Found(place, self.postings.names[n]) for place, n in enumerate(self.postings.passage[entries].tolist())
        ]
        prompt, target, relation = (column[row].as_py() for column in (self.prompts, self.targets, self.relations))
        return Answer(self.ids[row], prompt, target, relation=relation, proponents=found)


def stamp_of(path: Path) -> tuple[int, int]:
    try:
        about = os.stat(path)
    except OSError:
        raise MissingError(f"{path} is gone", fix="restore it, or start the explorer again") from None
    return about.st_size, about.st_mtime_ns


def require_same(path: Path, stamp: tuple[int, int]) -> None:
    if stamp_of(path) != stamp:
        raise MismatchError(f"{path} has changed since it was opened", fix="start the explorer again")


def parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
        if not isinstance(record, dict):
            raise TypeError(f"a {type(record).__name__}")
        return record
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptError(
            f"{path}, line {number} is not a result",
            got=str(error)[:200],
            expected='{"example_id": ..., "inputs_plaintext": ..., "proponents": [...]}',
            fix="restore the file, or make it again",
        ) from None


def lines_of(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset, line) of every line that is not empty; one is in memory at a time."""
    try:
        with open(path, "rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, offset, line
                offset += len(line)
    except OSError as error:
        raise MissingError(f"{path} cannot be read", got=error, fix="give a JSONL file of results") from None


def as_answer(record: Mapping[str, Any], name: str) -> Answer:
    """An answer from a line of results.

    Raises:
        TypeError, KeyError: it is not one.
    """
    against = record.get("against_plaintext") or ""
    answer = Answer(
        name,
        text_of(record.get("inputs_plaintext", "")),
        text_of(record.get("targets_plaintext", "")),
        text_of(against),
        text_of(record.get("relation") or ""),
        complete=not record.get("incomplete_index"),
    )
    answer.proponents = list(found_in(record, "proponent"))
    answer.opponents = list(found_in(record, "opponent"))
    return answer


def text_of(value: Any) -> str:
    """Text that can be encoded: half of a surrogate pair cannot."""
    return str(value).encode("utf-8", "replace").decode()


def found_in(record: Mapping[str, Any], end: str) -> Iterator[Found]:
    """The passages at one end; as many as both ids (or texts) and scores there are."""
    texts, ids = record.get(f"{end}s") or [], record.get(f"{end}_ids") or []

    def at(key: str, place: int) -> Any:
        values = record.get(f"{end}_{key}")
        return values[place] if isinstance(values, list) and place < len(values) else None

    for place in range(max(len(texts), len(ids))):
        text = text_of(texts[place]) if place < len(texts) else None
        score, seen, correct = at("scores", place), at("seen_steps", place), at("correct", place)
        tokens, token_scores = at("tokens", place), at("token_scores", place)
        yield Found(
            place,
            text_of(ids[place]) if place < len(ids) else unnamed(text or ""),
            float(score) if isinstance(score, int | float) and abs(score) <= LARGEST else None,
            text,
            bool(correct) if correct is not None else None,
            [int(step) for step in seen] if isinstance(seen, list) else None,
            [text_of(each) for each in tokens] if isinstance(tokens, list) else None,
            [float(each) for each in token_scores] if isinstance(token_scores, list) else None,
            [text_of(each) for each in at("duplicates", place) or []],
        )


def unnamed(text: str) -> str:
    """A name for a passage that has none: of its text, so that the same passage has one name in every answer."""
    return f"text:{xxhash.xxh3_64_hexdigest(text.encode())}"


def label_of(text: str) -> str:
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 1] + "…"
