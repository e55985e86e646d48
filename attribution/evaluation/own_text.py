"""The passages of the corpus's own text that state a planted fact as well: the gloss of Tokyo, for Japan's capital.

They are anchored on the document's lemmas, a column that a corpus may keep (`kind: wordnet` has it): a passage states a
fact if the subject or the value is a lemma of its document, and it says both. They are told apart from the gold, which
was planted: how many others state a fact in other words nobody knows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from headwater.attribution.evaluation.ranking import Ranking
from headwater.attribution.tracing.queries import Query
from headwater.train.stream.columns import PassageColumns
from headwater.train.stream.passages import PassageSet

LEMMAS = "lemmas"
"""The column, words with commas between."""
AT_ONCE = 1 << 16


def own_passages(queries: Sequence[Query], passages: PassageSet) -> list[list[str]]:
    """The ids, in order, of the corpus's own passages that state each query's fact; none where nothing is anchored.

    A query's fact is its `subject`, as its line in the file has it, and its target. Accents do not count, capitals do.
    """
    found: list[list[str]] = [[] for _ in queries]
    columns = PassageColumns(passages)
    if LEMMAS not in columns.names:
        return found
    facts = [(folded(str(query.record.get("subject", ""))), folded(query.target.strip())) for query in queries]
    asking: dict[str, list[int]] = {}
    for number, fact in enumerate(facts):
        for word in filter(None, fact):
            asking.setdefault(word, []).append(number)
    for start in range(0, len(passages), AT_ONCE):
        read = columns.read(["id", LEMMAS], start, min(start + AT_ONCE, len(passages)))
        for place, lemmas in enumerate(read[LEMMAS].to_pylist()):
            words = folded(lemmas or "").split(", ")
            candidates = {number for word in words for number in asking.get(word, ())}
            text = folded(passages.text(start + place)) if candidates else ""
            for number in sorted(candidates):
                if all(says(text, part) for part in facts[number]):
                    found[number].append(read["id"][place].as_py())
    return found


def folded(text: str) -> str:
    """A text without accents."""
    return "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))


def says(text: str, words: str) -> bool:
    """Whether a text has these words, whole and as they are written; of no words it has none."""
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def asked_for(queries: Sequence[Query], own: Sequence[Sequence[str]]) -> list[Query]:
    """The queries whose gold, for the time of a ranking, is followed by the corpus's own passages."""
    return [replace(query, gold=(*query.gold, *each)) for query, each in zip(queries, own, strict=True)]


def told_apart(rankings: Sequence[Ranking], own: Sequence[Sequence[str]]) -> list[Ranking]:
    """Rankings of `asked_for` queries, with the ranks of the corpus's own passages in a place of their own."""
    made = []
    for ranking, each in zip(rankings, own, strict=True):
        golds = len(ranking.gold_ranks) - len(each)
        made.append(replace(ranking, gold_ranks=ranking.gold_ranks[:golds], own_ranks=ranking.gold_ranks[golds:]))
    return made
