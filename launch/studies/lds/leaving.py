"""Small sets of passages that a training of its own leaves out, and what that does to the question they are of.

Sets of a query: the best passages of a method (`top` of them), its gold passages, the single best passage of the first
method, and as many random ones as `top`. Queries of planted facts and of stated values take turns: both have golds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headwater.attribution.evaluation.ranking import numbers_of
from headwater.attribution.tracing.queries import Query
from headwater.launch.studies.lds.measured import Measured
from headwater.launch.studies.lds.outputs import read_outputs
from headwater.launch.studies.lds.queries import CLOZE, FACTS
from headwater.launch.studies.lds.scoring import baseline_scores
from headwater.launch.studies.lds.settings import BEST, LdsSettings, left_path, left_sets, scores_file
from headwater.train.stream.passages import PassageSet

SETS = 0x5E75
"""Keeps the draws of queries and of random passages apart from others of the same seed."""


def asked_of(queries: Sequence[Query], count: int, seed: int) -> list[int]:
    """The numbers of the queries that sets are made for, at most `count`."""
    draw = np.random.default_rng([seed, SETS])
    by_kind = []
    for kind in (FACTS, CLOZE):
        places = [place for place, query in enumerate(queries) if query.record["kind"] == kind and query.gold]
        by_kind.append(draw.permutation(places).tolist() if places else [])
    turns = max(map(len, by_kind))
    return [places[turn] for turn in range(turns) for places in by_kind if turn < len(places)][:count]


def set_of(
    name: str, slot: int, queries: Sequence[Query], passages: PassageSet, out: Path, settings: LdsSettings
) -> np.ndarray:
    """The passages of a set, by number, rising.

    Args:
        name: of the set: gold, random, best, or a method.
        slot: which of the queries that sets are made for.
    """
    query = asked_of(queries, settings.left_out.queries, settings.seed)[slot]
    top = settings.left_out.top
    if name == "gold":
        return np.sort(numbers_of(queries[query].gold, passages))
    if name == "random":
        drawn = np.random.default_rng([settings.seed, SETS, slot]).permutation(len(passages))[:top]
        return np.sort(drawn)
    if name == "bm25":
        scores_QN = baseline_scores(queries, passages, settings.seed)["bm25"]
    else:
        scores_QN = np.load(scores_file(out, settings.methods[0].name if name == BEST else name))
    best = np.argsort(-scores_QN[query], kind="stable")[: 1 if name == BEST else top]
    return np.sort(best)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What the trainings without small sets said.

    Attributes:
        queries_S: the query of each slot.
        sets: per name the passages of each slot's set.
        outputs: per name float64 [slots, queries], log-probabilities of all queries.
    """

    queries_S: np.ndarray
    sets: dict[str, list[np.ndarray]]
    outputs: dict[str, np.ndarray]

    def usual(self) -> np.ndarray:
        """What a model says that lacks nothing of importance: the mean over the trainings without random passages,
        float64 [queries]."""
        return self.outputs["random"].mean(axis=0)

    def costs(self, name: str) -> np.ndarray:
        """How much less likely, in nats, each slot's own answer is without its set than usually, float64 [slots]."""
        said_S = self.outputs[name][np.arange(len(self.queries_S)), self.queries_S]
        return self.usual()[self.queries_S] - said_S


def read_left_out(out: Path, settings: LdsSettings, measured: Measured) -> LeftOut | None:
    """Reads the trainings without small sets; None where the study has none."""
    chosen = asked_of(measured.queries, settings.left_out.queries, settings.seed)
    if not chosen:
        return None
    sets, outputs, top = {}, {}, settings.left_out.top
    for name in left_sets(settings):
        slots = range(len(chosen))
        sets[name] = [set_of(name, slot, measured.queries, measured.passages, out, settings) for slot in slots]
        outputs[name] = np.stack([read_outputs(left_path(out, name, top, slot))[:, 0] for slot in slots])
    return LeftOut(np.array(chosen), sets, outputs)
