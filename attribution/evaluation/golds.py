"""Which passages a question's gold entries are: ids of passages, ids of documents, or texts of passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headwater.attribution.evaluation.ranking import Passages
from headwater.attribution.tracing.queries import Query
from headwater.configs.errors import MismatchError


def with_gold_ids(queries: Sequence[Query], passages: Passages) -> list[Query]:
    """The queries with passages' ids for gold. A document's id stands for all its passages; an entry that is no id is
    looked for among the passages' texts, blanks at the ends aside.

    Raises:
        MismatchError: an entry is neither.
    """
    named = {entry for query in queries for entry in query.gold}
    known = {entry: pieces for entry in named if (pieces := ids_of(entry, passages))}
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


def ids_of(entry: str, passages: Passages) -> list[str]:
    """A passage's id, or those of a document's passages; nothing where it is neither."""
    if passages.find(entry) is not None:
        return [entry]
    pieces: list[str] = []
    while passages.find(name := f"{entry}#{len(pieces)}") is not None:
        pieces.append(name)
    return pieces


def ids_of_texts(texts: set[str], passages: Passages) -> dict[str, list[str]]:
    """The ids of the passages with each text, in order; the corpus is read once, and only if there is a text."""
    wanted = {text.strip(): text for text in texts}
    found: dict[str, list[str]] = {}
    for number in range(len(passages)) if wanted else ():
        text = wanted.get(passages.text(number).strip())
        if text is not None:
            found.setdefault(text, []).append(passages.id_of(number))
    return found
