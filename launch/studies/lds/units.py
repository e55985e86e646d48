"""What a score is worth in nats, fitted on one half of the trainings and held against the others.

For a query q and a training m let x be the sum of the scores of the passages that m had, and y the log-probability that
its model gives the answer. Within a query y moves with x by some slope b, the same for all queries of a kind:

    y_mq - mean_m y_mq = b (x_mq - mean_m x_mq) + noise,

so that leaving out passages whose scores add up to s costs b s nats. b is fitted by least squares on the first half of
the trainings; its interval is over queries. Whether it holds is asked of trainings that had no part in it: of the other
half, and of those that lack a few passages only, where the cost is small and sums of scores may not add up.

Shapes: M trainings, Q queries, S slots (a query and its set).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import RESAMPLES, cluster_bootstrap, interval
from headwater.launch.studies.lds.leaving import LeftOut

WITHIN = 1.6449
"""Standard deviations on either side that hold 90% of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What scores of a kind of query are worth.

    Attributes:
        slope: [b, low, high], nats a unit of score; 95%, over queries.
        noise: standard deviation of one training's log-probability about what is foretold, in nats.
    """

    slope: list[float]
    noise: float

    @classmethod
    def fitted(cls, sums_MQ: np.ndarray, outputs_MQ: np.ndarray) -> Worth | None:
        """From the trainings of some halves; None where the scores do not differ."""
        x_MQ, y_MQ = sums_MQ - sums_MQ.mean(axis=0), outputs_MQ - outputs_MQ.mean(axis=0)
        xy_Q, xx_Q = (x_MQ * y_MQ).sum(axis=0), (x_MQ**2).sum(axis=0)
        if not xx_Q.sum() > 0:
            return None
        slope = cluster_bootstrap(np.arange(len(xy_Q)), lambda at: float(xy_Q[at].sum() / max(xx_Q[at].sum(), 1e-300)))
        rest_MQ = y_MQ - slope[0] * x_MQ
        return cls(slope, float(np.sqrt((rest_MQ**2).sum() / ((len(y_MQ) - 1) * y_MQ.shape[1]))))

    @property
    def slope_error(self) -> float:
        """Standard error of the slope, of its interval."""
        return (self.slope[2] - self.slope[1]) / (2 * 1.96)

    def held_against(self, sums_MQ: np.ndarray, outputs_MQ: np.ndarray) -> dict[str, float]:
        """Other halves' trainings: the share of their variance within a query that is foretold, and the share of
        trainings inside the 90% interval."""
        x_MQ, y_MQ = sums_MQ - sums_MQ.mean(axis=0), outputs_MQ - outputs_MQ.mean(axis=0)
        rest_MQ = y_MQ - self.slope[0] * x_MQ
        # A deviation from a mean of M trainings is smaller than the training's own.
        width = WITHIN * self.noise * np.sqrt(1 - 1 / len(y_MQ))
        return {
            "explained": float(1 - (rest_MQ**2).sum() / max((y_MQ**2).sum(), 1e-300)),
            "coverage": float((np.abs(rest_MQ) <= width).mean()),
        }

    def of_sets(self, sums_S: np.ndarray, costs_S: np.ndarray, usual: int) -> dict[str, Any]:
        """Small sets that were left out: what was foretold and measured in nats, what a foretold nat is, and coverage.

        Args:
            sums_S: of the scores of each set.
            costs_S: nats that leaving it out has taken from the answer.
            usual: trainings that the usual answer is a mean of.

        Returns:
            Of `foretold`, `measured` and `nat` [mean, low, high]; no `nat` where nothing was foretold.
        """
        foretold_S = self.slope[0] * sums_S
        variance_S = self.noise**2 * (1 + 1 / usual) + (sums_S * self.slope_error) ** 2
        inside_S = np.abs(costs_S - foretold_S) <= WITHIN * np.sqrt(variance_S)
        foretells = bool((foretold_S != 0).any())

        def ratio(at: np.ndarray) -> float:
            square = float((foretold_S[at] ** 2).sum())
            return float((costs_S[at] * foretold_S[at]).sum()) / square if square else np.nan

        return {
            "foretold": interval(foretold_S),
            "measured": interval(costs_S),
            "nat": cluster_bootstrap(np.arange(len(costs_S)), ratio) if foretells else None,
            "coverage": float(inside_S.mean()),
        }


def units(
    scores_QN: np.ndarray, sums_MQ: np.ndarray, outputs_MQ: np.ndarray, kinds_Q: np.ndarray, left: LeftOut | None
) -> dict[str, Any]:
    """What a method's scores are worth, by kind of query: fitted on every other training, held against the rest.

    Returns:
        Per kind `slope`, `noise`, `halves` (`held_against`) and, where small sets were left out, `sets` by name
        (`of_sets`). A kind whose scores do not differ is left out.
    """
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(kinds_Q.tolist()):
        at = np.flatnonzero(kinds_Q == kind)
        worth = Worth.fitted(sums_MQ[::2, at], outputs_MQ[::2, at])
        if worth is None:
            continue
        row: dict[str, Any] = {"slope": worth.slope, "noise": worth.noise}
        row["halves"] = worth.held_against(sums_MQ[1::2, at], outputs_MQ[1::2, at])
        if left is not None:
            slots = np.flatnonzero(kinds_Q[left.queries_S] == kind)
            if len(slots):
                row["sets"] = _sets(worth, scores_QN, slots, left)
        found[kind] = row
    return found


def _sets(worth: Worth, scores_QN: np.ndarray, slots: np.ndarray, left: LeftOut) -> dict[str, Any]:
    found = {}
    for name, sets in left.sets.items():
        sums_S = np.array([scores_QN[left.queries_S[slot], sets[slot]].sum() for slot in slots])
        found[name] = worth.of_sets(sums_S, left.costs(name)[slots], len(left.outputs["random"]))
    return found


def left_out_costs(left: LeftOut, kinds_Q: np.ndarray) -> Mapping[str, Any]:
    """What each kind of set costs the answers that it is of: nats, [mean, low, high], over all and by kind of query.

    `qld` is what it costs more than the random set of the same query (bergson's query log-probability drop).
    """
    kinds_S, random_S = kinds_Q[left.queries_S], left.costs("random")
    return {
        name: {
            "passages": float(np.mean([len(each) for each in sets])),
            "nats": interval(left.costs(name), resamples=RESAMPLES),
            "qld": interval(left.costs(name) - random_S, resamples=RESAMPLES),
            "kinds": {kind: interval(left.costs(name)[kinds_S == kind]) for kind in dict.fromkeys(kinds_S.tolist())},
        }
        for name, sets in left.sets.items()
    }
