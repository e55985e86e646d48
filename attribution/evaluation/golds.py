"""Which passages a question's gold entries are: ids of passages, ids of documents, or texts of passages; or those whose
columns hold the question's own values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from headwater.attribution.evaluation.ranking import Passages
from headwater.attribution.search.where import Columns
from headwater.attribution.tracing.queries import Query
from headwater.configs.errors import MismatchError

PIECES = 64
"""Passages of a document that are looked for at a time."""
AT_ONCE = 1 << 16
"""Passages whose columns are looked at at a time."""


def with_gold_ids(queries: Sequence[Query], passages: Passages) -> list[Query]:
    """The queries with passages' ids for gold. A document's id stands for all its passages; an entry that is no id is
    looked for among the passages' texts, blanks at the ends aside.

    Raises:
        MismatchError: an entry is neither.
    """
    named = {entry for query in queries for entry in query.gold}
    known = {name: [name] for name in passages.found(named)}
    known |= pieces_of(named - known.keys(), passages)
    known |= {entry: names[:1] for entry, names in ids_of_texts(named - known.keys(), passages).items()}
    unknown = sorted(named - known.keys())
    if unknown:
        raise MismatchError(
            f"{len(unknown)} gold passage(s) are not in the corpus",
            got=", ".join(entry[:60] for entry in unknown[:3]),
            expected=f"ids such as {passages.id_of(0)}, of documents, or whole texts of passages",
            fix="give `gold` as ids or texts of the corpus that the index was made from",
        )
    golds = [dict.fromkeys(name for entry in query.gold for name in known[entry]) for query in queries]
    return [replace(query, gold=tuple(gold)) for query, gold in zip(queries, golds, strict=True)]


def pieces_of(documents: set[str], passages: Passages) -> dict[str, list[str]]:
    """The ids of the passages of those that are documents, in order: `document#0`, `document#1` and so on."""
    pieces: dict[str, list[str]] = {}
    left, first = documents, 0
    while left:  # the corpus's ids are gone through once for so many of each document's
        found = passages.found({f"{name}#{n}" for name in left for n in range(first, first + PIECES)})
        for name in left:
            here = itertools.takewhile(found.__contains__, (f"{name}#{n}" for n in range(first, first + PIECES)))
            pieces[name] = pieces.get(name, []) + list(here)
        first += PIECES
        left = {name for name in left if len(pieces[name]) == first}
    return {name: each for name, each in pieces.items() if each}


def ids_of_texts(texts: set[str], passages: Passages) -> dict[str, list[str]]:
    """The ids of the passages with each text, in order; the corpus is read once, and only if there is a text."""
    wanted = {text.strip(): text for text in texts}
    found: dict[str, list[str]] = {}
    for number in range(len(passages)) if wanted else ():
        text = wanted.get(passages.text(number).strip())
        if text is not None:
            found.setdefault(text, []).append(passages.id_of(number))
    return found


def with_gold_columns(
    queries: Sequence[Query], passages: Passages, columns: Columns, names: Sequence[str]
) -> list[Query]:
    """The queries with the passages for gold that have the question's own values in these columns, compared as values
    of the column's type: "1991" and 1991 are the same year.

    So DATE-LM (arXiv 2507.09424) says which examples state a fact: those of its true and its counterfactual entity.

    Raises:
        MismatchError: the passages have no such column, a question no such value, or no passage a question's values.
    """
    unknown = [name for name in names if name not in columns.names]
    if unknown:
        raise MismatchError(
            "the passages have no column that gold is told by",
            got=", ".join(unknown),
            expected=", ".join(columns.names),
            fix="keep it with `columns` of the corpus's source, and build again",
        )
    values = [tuple(query.record.get(name) for name in names) for query in queries]
    for query, each in zip(queries, values, strict=True):
        if not all(isinstance(value, str | int | float) for value in each):
            raise MismatchError(
                f"query {query.example_id} does not say what its gold passages hold",
                got=dict(zip(names, each, strict=True)),
                expected=f"a text or a number in {', '.join(names)}",
                fix="give the query these fields",
            )
    numbers = holding(values, len(passages), columns, names)
    nowhere = [place for place, found in enumerate(numbers) if not found]
    if nowhere:
        raise MismatchError(
            f"{len(nowhere)} question(s) have values in {', '.join(names)} that no passage holds",
            got="; ".join(f"{queries[n].example_id}: {', '.join(map(repr, values[n]))}" for n in nowhere[:3]),
            expected="values of one passage at least, as the columns write them",
            fix="correct these fields of the questions, or leave the questions out",
        )
    return [replace(query, gold=tuple(passages.ids_of(found))) for query, found in zip(queries, numbers, strict=True)]


def holding(
    values: Sequence[tuple[Any, ...]], count: int, columns: Columns, names: Sequence[str]
) -> list[Sequence[int]]:
    """The passages, of `count`, that hold each of `values`, a value a column; in ascending order."""
    keys: list[tuple[Any, ...] | None] = [None] * len(values)
    found: dict[tuple[Any, ...], list[int]] = {}
    for start in range(0, count, AT_ONCE):
        read = columns.read(names, start, min(start + AT_ONCE, count))
        if not start:  # a column is of one type throughout
            types = [read[name].type for name in names]
            keys = [as_columns(each, types) for each in values]
            found = {key: [] for key in keys if key is not None}
        rows = zip(*(read[name].to_pylist() for name in names), strict=True)
        for number, row in enumerate(rows, start=start):
            if row in found:
                found[row].append(number)
    return [() if key is None else found[key] for key in keys]


def as_columns(values: Sequence[Any], types: Sequence[pa.DataType]) -> tuple[Any, ...] | None:
    """The values as columns of these types hold them; None where one cannot be a value of its column. A flag is none of
    a column of numbers, nor a number one of flags.
    """
    cast = []
    for value, given in zip(values, types, strict=True):
        kind = given.value_type if pa.types.is_dictionary(given) else given
        if pa.types.is_boolean(kind) != isinstance(value, bool):
            return None
        try:
            cast.append(pa.scalar(value).cast(kind).as_py())
        except pa.ArrowException:
            return None
    return tuple(cast)
