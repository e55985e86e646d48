"""A random order of all passages: the floor under every other method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from headwater.attribution.evaluation.ranking import DEPTH, Passages, Ranking, rank_by_order
from headwater.attribution.tracing.queries import Query


class RandomRanking:
    """A permutation per query, drawn from (seed, example id): it does not depend on which other queries are asked."""

    name = "random"

    def __init__(self, seed: int = 0, depth: int = DEPTH) -> None:
        self.seed, self.depth = seed, depth

    def rank(self, queries: Sequence[Query], passages: Passages) -> list[Ranking]:
        rankings = []
        for query in queries:
            generator = np.random.default_rng([self.seed, xxhash.xxh3_64_intdigest(query.example_id)])
            rankings.append(rank_by_order(query, generator.permutation(len(passages)), passages, self.depth))
        return rankings
