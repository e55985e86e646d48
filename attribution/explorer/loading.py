"""Files of results and of rankings, read once from end to end into the columns of an `AnswerSet`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headwater.attribution.explorer.sets import (
    ENDS,
    UNKNOWN_RANK,
    Answer,
    AnswerSet,
    Found,
    Postings,
    as_answer,
    label_of,
    lines_of,
    parsed,
    stamp_of,
    text_of,
)
from headwater.configs.errors import CorruptError, MissingError

Probes = Mapping[str, Mapping[str, Any]]
"""The run's probes by example id: what a ranking says nothing of."""


class _Columns:
    """An answer set while it is being read."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.texts: tuple[list[str], list[str], list[str]] = ([], [], [])
        self.places: list[tuple[int, int]] = []
        self.first_gold: list[int] = []
        self.gold_found: list[int] = []
        self.names: dict[str, int] = {}
        self.entries: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self.depth = 0
        self.incomplete = False
        self._seen: dict[str, int] = {}

    def add(self, answer: Answer, offset: int, length: int) -> None:
        number = len(self.ids)
        twice = self._seen[answer.id] = self._seen.get(answer.id, 0) + 1
        self.ids.append(answer.id if twice == 1 else f"{answer.id}~{twice}")
        for column, text in zip(self.texts, (answer.prompt, answer.target, answer.relation), strict=True):
            column.append(label_of(text))
        self.places.append((offset, length))
        gold = [found.place for found in answer.proponents if found.gold]
        known = any(found.gold is not None for found in answer.proponents)
        self.first_gold.append(gold[0] if gold else UNKNOWN_RANK)
        self.gold_found.append(len([place for place in gold if place < 10]) if known else -1)
        self.depth = max(self.depth, len(answer.proponents))
        self.incomplete |= not answer.complete
        for opponent, found in enumerate((answer.proponents, answer.opponents)):
            self._post(number, found, opponent)

    def _post(self, number: int, found: list[Found], opponent: int) -> None:
        codes = [self.names.setdefault(each.id, len(self.names)) for each in found]
        entries = np.empty((len(codes), 4), np.int32)
        entries[:, 0], entries[:, 1], entries[:, 2], entries[:, 3] = codes, number, np.arange(len(codes)), opponent
        self.entries.append(entries)
        self.scores.append(np.array([np.nan if each.score is None else each.score for each in found], np.float32))

    def made(self, name: str, label: str, kind: str, path: Path, ranks: list[tuple[int, ...]] | None) -> AnswerSet:
        entries = np.concatenate([np.empty((0, 4), np.int32), *self.entries])
        postings = Postings(
            list(self.names),
            entries[:, 0].copy(),
            entries[:, 1].copy(),
            entries[:, 2].astype(np.int16),
            np.concatenate([np.empty(0, np.float32), *self.scores]),
            entries[:, 3].astype(bool),
        )
        prompts, targets, relations = (pa.array(column, pa.string()) for column in self.texts)
        places = np.array(self.places, np.int64).reshape(-1, 2)
        first = np.array(self.first_gold, np.int64)
        if ranks is not None:
            first = np.array([min(each) if each else UNKNOWN_RANK for each in ranks], np.int64)
        return AnswerSet(
            name,
            label,
            kind,
            path,
            self.ids,
            prompts,
            targets,
            relations,
            ranks,
            first,
            np.array(self.gold_found, np.int64),
            postings,
            places[:, 0],
            places[:, 1],
            self.depth,
            stamp_of(path),
            self.incomplete,
        )


def read_results(path: Path, name: str, label: str, ranks: Mapping[str, tuple[int, ...]] | None = None) -> AnswerSet:
    """Reads a file of results.

    Args:
        ranks: gold ranks over the whole corpus by example id, where an evaluation has them.

    Raises:
        MissingError, CorruptError: there is nothing in it, or a line is no result; the error names it.
    """
    columns = _Columns()
    for number, offset, line in lines_of(path):
        record = parsed(line, path, number)
        try:
            if not any(key in record for key in ("inputs_plaintext", *(f"{end}s" for end in ENDS))):
                raise KeyError("inputs_plaintext")
            answer = as_answer(record, text_of(record.get("example_id", number - 1)))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(
                f"{path}, line {number} is not a result",
                got=f"{type(error).__name__}: {error}"[:200],
                expected='{"example_id": ..., "inputs_plaintext": ..., "proponents": [...], "proponent_scores": [...]}',
                fix="give a file that `headwater trace` wrote, or one of the published format",
            ) from None
        columns.add(answer, offset, len(line))
    if not columns.ids:
        raise MissingError(f"{path} holds no results", fix="run `headwater trace` again")
    known = [ranks[name] for name in columns.ids] if ranks and all(name in ranks for name in columns.ids) else None
    return columns.made(name, label, "results", path, known)


def read_ranking(path: Path, name: str, label: str, probes: Probes) -> AnswerSet:
    """Reads RUN/evaluation/METHOD.jsonl, with prompts and targets of the run's probes.

    Raises:
        MissingError, CorruptError: as of `read_results`.
    """
    columns, ranks = _Columns(), []
    for number, offset, line in lines_of(path):
        record = parsed(line, path, number)
        try:
            query = text_of(record["example_id"])
            named = [text_of(each) for each in record["ranking"]]
            gold = tuple(int(rank) for rank in record["gold_ranks"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(
                f"{path}, line {number} is not a ranking",
                got=repr(error)[:200],
                expected='{"example_id": ..., "ranking": [...], "gold_ranks": [...]}',
                fix="run `headwater evaluate` again",
            ) from None
        probe = probes.get(query, {})
        prompt, target, relation = (text_of(probe.get(key, "")) for key in ("prompt", "target", "relation"))
        found = [Found(place, each) for place, each in enumerate(named)]
        answer = Answer(query, prompt, target, relation=relation, proponents=found)
        columns.add(answer, offset, len(line))
        ranks.append(gold)
    if not columns.ids:
        raise MissingError(f"{path} holds no rankings", fix="run `headwater evaluate` again")
    return columns.made(name, label, "ranking", path, ranks)
