"""What every attribution method takes and gives: queries and passages in, one ranking of the whole corpus per query.

A ranking keeps the ids of the best passages, and the rank of each gold passage over the *whole* corpus, so that MRR is
exact however deep the first gold passage lies. Gradient methods and baselines write the same file,
RUN/evaluation/METHOD.jsonl, one line a query:
`{"example_id", "ranking": [ids, best first], "gold_ranks": [0-based rank of each gold passage]}`, and `own_ranks` where
the corpus's own text states the fact as well (own_text.py).
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from headwater.attribution.tracing.queries import Query
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import atomic_path

DEPTH = 100
"""How many of the best passages a ranking names, unless told otherwise."""
AT_ONCE = 1 << 20
"""Scores that are looked at at a time."""


class Passages(Protocol):
    """What a baseline reads of a corpus; `train.stream.passages.PassageSet` is one."""

    def __len__(self) -> int: ...

    def id_of(self, passage: int) -> str:
        """The id of one passage."""
        ...

    def text(self, passage: int) -> str:
        """The text of one passage."""
        ...

    def ids_of(self, passages: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of some passages."""
        ...

    def found(self, ids: Collection[str]) -> dict[str, int]:
        """The numbers of those of the ids that are passages."""
        ...


def numbers_of(ids: Iterable[str], passages: Passages) -> np.ndarray:
    """Passage numbers, int64 [n], of `ids`.

    Raises:
        MismatchError: if one of them is not a passage of this corpus.
    """
    return numbers_of_lists([list(ids)], passages)[0]


def numbers_of_lists(lists: Sequence[Sequence[str]], passages: Passages) -> list[np.ndarray]:
    """`numbers_of` each of some lists; the corpus's ids are gone through once."""
    found = passages.found({name for each in lists for name in each})
    unknown = [name for each in lists for name in each if name not in found]
    if unknown:
        raise MismatchError(
            f"{len(unknown)} gold passage(s) are not in the corpus",
            got=", ".join(unknown[:3]),
            expected=f"ids such as {passages.id_of(0)}" if len(passages) else "a corpus with passages",
            fix="evaluate the run whose facts these are",
        )
    return [np.array([found[name] for name in each], dtype=np.int64) for each in lists]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer of one method to one query.

    `ranking` holds the ids of the best passages, best first; `gold_ranks` the 0-based rank of each gold passage over
    the whole corpus; `own_ranks` that of each passage of the corpus's own text that states the fact too.
    """

    example_id: str
    ranking: tuple[str, ...]
    gold_ranks: tuple[int, ...]
    own_ranks: tuple[int, ...] = ()


class Method(Protocol):
    """A way to rank all passages of a corpus for a query."""

    name: str

    def rank(self, queries: Sequence[Query], passages: Passages) -> list[Ranking]:
        """One ranking per query, in the order of `queries`."""
        ...


class ScoreRanking:
    """The ranking of one query by its scores, which come piece by piece, in the order of the passages.

    Args:
        query: whose gold passages have these numbers and scores, both [G].
        passages: that are ranked.
        depth: how many ids the ranking names.
    """

    def __init__(
        self, query: Query, passages: Passages, gold: np.ndarray, levels: np.ndarray, depth: int = DEPTH
    ) -> None:
        self.query, self.passages, self.depth = query, passages, depth
        self._gold, self._levels = gold, levels
        self._above = np.zeros(len(gold), dtype=np.int64)
        self._scores, self._numbers = np.zeros(0), np.zeros(0, dtype=np.int64)

    def add(self, start: int, scores_N: np.ndarray) -> None:
        """Takes the scores of the passages from `start` on, real [n].

        Raises:
            UserError: one is not finite; NaN would otherwise pass for a perfect rank.
        """
        if not np.isfinite(scores_N).all():
            bad = int(np.flatnonzero(~np.isfinite(scores_N))[0])
            raise UserError(
                f"query {self.query.example_id}: the score of passage {self.passages.id_of(start + bad)} is not finite",
                got=float(scores_N[bad]),
                fix="build the index again; fp16 sums of log-odds rows are known to overflow",
            )
        for g, (gold, level) in enumerate(zip(self._gold, self._levels, strict=True)):
            before = max(min(int(gold) - start, len(scores_N)), 0)
            self._above[g] += np.count_nonzero(scores_N > level) + np.count_nonzero(scores_N[:before] == level)
        near = np.arange(len(scores_N))
        if len(self._scores) == self.depth:  # of equal scores those that came first stay
            near = np.flatnonzero(scores_N > self._scores[-1])
        if len(near) > self.depth:
            least = np.partition(scores_N[near], -self.depth)[-self.depth]
            above = near[scores_N[near] > least]
            near = np.concatenate([above, near[scores_N[near] == least][: self.depth - len(above)]])
        scores = np.concatenate([self._scores, scores_N[near]])
        numbers = np.concatenate([self._numbers, near + start])
        order = np.lexsort((numbers, -scores))[: self.depth]
        self._scores, self._numbers = scores[order], numbers[order]

    def ranking(self) -> Ranking:
        """Of what has come."""
        names = tuple(self.passages.ids_of(self._numbers))
        return Ranking(self.query.example_id, names, tuple(self._above.tolist()))


def rank_by_scores(
    query: Query, scores_N: np.ndarray, passages: Passages, depth: int = DEPTH, gold: np.ndarray | None = None
) -> Ranking:
    """Ranks the corpus by descending score; equal scores stand in passage order, for every method alike.

    Args:
        scores_N: real [N], one score per passage; may be mapped from a file.
        depth: how many ids the ranking names (fewer where the corpus is smaller).
        gold: numbers of the query's gold passages, if they are known.

    Raises:
        UserError: if a score is not finite.
    """
    if np.shape(scores_N) != (len(passages),):
        raise ValueError(f"scores of shape {np.shape(scores_N)} for {len(passages)} passages")
    gold = numbers_of(query.gold, passages) if gold is None else gold
    made = ScoreRanking(query, passages, gold, np.asarray(scores_N[gold]), depth)
    for start in range(0, len(passages), AT_ONCE):
        made.add(start, np.asarray(scores_N[start : start + AT_ONCE]))
    return made.ranking()


def rank_by_order(query: Query, order_N: np.ndarray, passages: Passages, depth: int = DEPTH) -> Ranking:
    """A ranking from a permutation: `order_N` int [N] holds passage numbers, best first."""
    ranks_N = np.empty(len(order_N), dtype=np.int64)
    ranks_N[order_N] = np.arange(len(order_N))
    gold_ranks = ranks_N[numbers_of(query.gold, passages)]
    return Ranking(
        query.example_id,
        tuple(passages.ids_of(order_N[:depth])),
        tuple(int(rank) for rank in gold_ranks),
    )


class ScoringMethod(ABC):
    """A method that gives every passage a score, and ranks by it.

    Args:
        depth: how many ids a ranking names.
    """

    name: str

    def __init__(self, depth: int = DEPTH) -> None:
        self.depth = depth

    @abstractmethod
    def scores(self, queries: Sequence[Query], passages: Passages) -> np.ndarray:
        """Every passage's score, float32 [queries, passages]."""

    def rank(self, queries: Sequence[Query], passages: Passages) -> list[Ranking]:
        """One ranking per query; where scores are equal the passages stand in their own order."""
        golds = numbers_of_lists([query.gold for query in queries], passages)
        scores_QN = self.scores(queries, passages)
        return [
            rank_by_scores(query, scores_N, passages, self.depth, gold)
            for query, scores_N, gold in zip(queries, scores_QN, golds, strict=True)
        ]


def write_rankings(path: str | os.PathLike[str], rankings: Sequence[Ranking]) -> None:
    """Writes RUN/evaluation/METHOD.jsonl, one line a query."""
    with atomic_path(path) as part, open(part, "w", encoding="utf-8") as file:
        for each in rankings:
            line = {"example_id": each.example_id, "ranking": each.ranking, "gold_ranks": each.gold_ranks}
            if each.own_ranks:
                line["own_ranks"] = each.own_ranks
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_rankings(path: str | os.PathLike[str]) -> list[Ranking]:
    """Reads what `write_rankings` wrote.

    Raises:
        MissingError: if there is no such file.
        CorruptError: if a line is not a ranking.
    """
    path = Path(path)
    if not path.exists():
        raise MissingError(f"{path} is missing", fix="run `headwater evaluate` first")
    rankings = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            item = json.loads(line)
            ranks, own = (tuple(int(rank) for rank in each) for each in (item["gold_ranks"], item.get("own_ranks", ())))
            rankings.append(Ranking(str(item["example_id"]), tuple(item["ranking"]), ranks, own))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"line {number} of {path} is not a ranking"
            raise CorruptError(what, got=repr(error), fix="run `headwater evaluate` again") from None
    return rankings
