"""From the trainings and scores of a study of half-corpora to its summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import RESAMPLES, interval, jackknife_error, resampled_means
from headwater.attribution.evaluation.lds import predictions, rank_correlations, without_each
from headwater.attribution.evaluation.metrics import retrieval
from headwater.attribution.evaluation.ranking import rank_by_scores
from headwater.attribution.evaluation.table import format_interval
from headwater.launch.studies.lds.leaving import read_left_out
from headwater.launch.studies.lds.measured import Measured, read_measured
from headwater.launch.studies.lds.outsider import kept_scores
from headwater.launch.studies.lds.queries import KINDS
from headwater.launch.studies.lds.scoring import baseline_scores
from headwater.launch.studies.lds.settings import LdsSettings, scores_file
from headwater.launch.studies.lds.units import left_out_costs, units
from headwater.launch.studies.verdict import FAILS, HOLDS, ON_AVERAGE, held_to

SHARE_OF_CEILING = 0.8
LEAST_NAT, MOST_NAT = 0.8, 1.25
"""What the first method is held to."""
SHOWN = ("mrr", "recall@10")


def summarise(out: Path, settings: LdsSettings) -> dict[str, Any]:
    """The study's figures: a function of what the parts have left, and of no clock.

    Returns:
        Of all queries, and again under `kinds` of each kind: how many, the ceiling, each method's linear datamodeling
        score, its share of the ceiling and retrieval, and the differences of all pairs of methods; what small sets
        cost (`left_out`), what a score is worth (`units`); then the claims.
        Intervals are [mean, low, high], over queries; errors are standard errors over halves.
    """
    measured = read_measured(out, settings)
    scores = all_scores(out, settings, measured)
    foretold = {name: predictions(each, measured.inside_MN, measured.outputs_MQ) for name, each in scores.items()}
    lds = {name: Correlated.of(each, measured.outputs_MQ) for name, each in foretold.items()}
    found = {name: retrieved(each, measured) for name, each in scores.items()}
    again_AQ, left = measured.again_AQ, read_left_out(out, settings, measured)
    ceiling = Correlated.of(measured.outputs_MQ[: len(again_AQ)], again_AQ) if len(again_AQ) else None
    kinds_Q = measured.kinds_Q
    places = {kind: np.flatnonzero(kinds_Q == kind) for kind in KINDS if (kinds_Q == kind).any()}
    rows = {kind: group(lds, found, ceiling, at) for kind, at in places.items()}
    whole = group(lds, found, ceiling, np.arange(len(kinds_Q)))
    for kind, at in places.items():
        rows[kind]["log_probability"] = {
            "whole": float(measured.whole_Q[at].mean()),
            "halves": float(measured.outputs_MQ[:, at].mean()),
        }
    worth = {
        name: units(scores[name], foretold[name], measured.outputs_MQ, kinds_Q, left) for name in with_units(settings)
    }
    costs = left_out_costs(left, kinds_Q) if left is not None else {}
    for name in whole["methods"].keys() & costs.keys():
        whole["methods"][name]["qld"] = costs[name]["qld"]
    return {
        "models": len(measured.outputs_MQ),
        "again": len(again_AQ),
        "passages": len(measured.passages),
        "seed": settings.seed,
        "setting": {"preset": settings.preset, "pretrain": settings.pretrain},
        **whole,
        "kinds": rows,
        "left_out": costs,
        "units": worth,
        "claims": [*judge(settings, whole, rows), *judge_units(settings, worth)],
    }


def all_scores(out: Path, settings: LdsSettings, measured: Measured) -> dict[str, np.ndarray]:
    """Scores of every method, of those handed in, and of the baselines: [queries, passages] each."""
    scores = {method.name: np.load(scores_file(out, method.name)) for method in settings.methods}
    return {**scores, **kept_scores(out), **baseline_scores(measured.queries, measured.passages, settings.seed)}


def retrieved(scores_QN: np.ndarray, measured: Measured) -> dict[str, np.ndarray]:
    """Retrieval metrics, float64 [queries] each; NaN for a query without gold passages."""
    asked = [place for place, query in enumerate(measured.queries) if query.gold]
    values = {metric: np.full(len(measured.queries), np.nan) for metric in SHOWN}
    if asked:
        rankings = [rank_by_scores(measured.queries[q], scores_QN[q], measured.passages) for q in asked]
        for metric, each in retrieval(rankings).items():
            if metric in values:
                values[metric][asked] = each
    return values


@dataclass(frozen=True, slots=True)
class Correlated:
    """Rank correlations over the halves' models.

    Attributes:
        all_Q: float64, of all models.
        without_MQ: float64, without each model in turn.
    """

    all_Q: np.ndarray
    without_MQ: np.ndarray

    @classmethod
    def of(cls, a_MQ: np.ndarray, b_MQ: np.ndarray) -> Correlated:
        return cls(rank_correlations(a_MQ, b_MQ), without_each(a_MQ, b_MQ))

    def error(self, at: np.ndarray, less: Correlated | None = None) -> float:
        """The standard error that other halves would bring into the mean over some queries, or into its difference to
        another one's."""
        left_out_MQ = self.without_MQ - (less.without_MQ if less is not None else 0)
        return jackknife_error(left_out_MQ[:, at].mean(axis=1))


def group(
    lds: Mapping[str, Correlated],
    found: Mapping[str, Mapping[str, np.ndarray]],
    ceiling: Correlated | None,
    at: np.ndarray,
) -> dict[str, Any]:
    """The figures of some queries: intervals over queries, `error` over halves.

    Args:
        lds: of each method.
        found: retrieval metrics of each method.
        ceiling: how far one training foretells another.
        at: numbers of the queries.
    """
    means = {name: resampled_means(each.all_Q[at], RESAMPLES, 0) for name, each in lds.items()}
    entry: dict[str, Any] = {"queries": len(at)}
    if ceiling is not None:
        entry["ceiling"] = interval(ceiling.all_Q[at])
        entry["ceiling_error"] = ceiling.error(at)
        # Both trainings of a half are noisy; scores without any noise of their own may go up to the root.
        entry["attainable"] = [float(np.sqrt(max(value, 0))) for value in entry["ceiling"]]
        ceiling_R = resampled_means(ceiling.all_Q[at], RESAMPLES, 0)
    entry["methods"] = {}
    for name, each in lds.items():
        row: dict[str, Any] = {"lds": interval(each.all_Q[at]), "error": each.error(at)}
        if ceiling is not None and entry["ceiling"][1] > 0:
            row["share_of_ceiling"] = [row["lds"][0] / entry["ceiling"][0], *bounds(means[name] / ceiling_R)]
        for metric, values in found[name].items():
            known = values[at][np.isfinite(values[at])]
            if len(known):
                row[metric] = interval(known)
        entry["methods"][name] = row
    # The draws of all methods are of the same queries, so that the differences are paired.
    entry["differences"], entry["difference_errors"] = {}, {}
    for name, each in lds.items():
        others = {other: theirs for other, theirs in lds.items() if other != name}
        entry["differences"][name] = {
            other: [float((each.all_Q - theirs.all_Q)[at].mean()), *bounds(means[name] - means[other])]
            for other, theirs in others.items()
        }
        entry["difference_errors"][name] = {other: each.error(at, less=theirs) for other, theirs in others.items()}
    return entry


def bounds(values_R: np.ndarray) -> list[float]:
    """[low, high] of resampled values, 95%."""
    return [float(value) for value in np.quantile(values_R, [0.025, 0.975])]


def judge(settings: LdsSettings, whole: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the study is held to: the first method's score, over all queries and against BM25's on each kind."""
    if not settings.methods:
        return []
    name, claims = settings.methods[0].name, []
    value = whole["methods"][name].get("share_of_ceiling")
    if value is not None:
        what = f"{name}: at least {SHARE_OF_CEILING:.0%} of the ceiling"
        claims.append({"claim": what, "status": held_to(value, SHARE_OF_CEILING), "measured": as_interval(value)})
    for kind, row in kinds.items():
        value = row["differences"][name]["bm25"]
        what = f"{name}: above BM25 ({kind.replace('_', ' ')})"
        claims.append({"claim": what, "status": held_to(value, 0.0), "measured": as_interval(value)})
    return claims


def with_units(settings: LdsSettings) -> list[str]:
    """The methods whose scores are given a worth: the first, and BM25 beside it."""
    return [*(method.name for method in settings.methods[:1]), "bm25"]


def judge_units(settings: LdsSettings, worth: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the first method's units are held to: on golds left out, a foretold nat is a nat."""
    claims = []
    for name in [method.name for method in settings.methods[:1]]:
        for kind, row in worth[name].items():
            value = row.get("sets", {}).get("gold", {}).get("nat")
            if value is not None:
                within = value[1] >= LEAST_NAT and value[2] <= MOST_NAT
                status = HOLDS if within else (ON_AVERAGE if LEAST_NAT <= value[0] <= MOST_NAT else FAILS)
                what = f"{name}: a nat foretold for golds is {LEAST_NAT} to {MOST_NAT} nats ({kind.replace('_', ' ')})"
                claims.append({"claim": what, "status": status, "measured": format_nats(value)})
    return claims


def format_nats(value: list[float] | None) -> str:
    """[mean, low, high] with two digits."""
    if value is None:
        return "–"
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def as_interval(value: list[float] | None) -> str:
    return format_interval("mrr", value)
