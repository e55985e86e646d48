"""From the trainings of the study of exposures to its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import cluster_bootstrap, cluster_draws
from headwater.attribution.evaluation.lds import rank_correlations
from headwater.launch.studies.exposures.cells import NOTHING, queries_of, read_cells
from headwater.launch.studies.exposures.settings import (
    OURS,
    PREDICTORS,
    TRIVIAL,
    ExposuresSettings,
    dropped_run,
    model_run,
    predictions_file,
    seed_path,
)
from headwater.launch.studies.lds.outputs import read_outputs
from headwater.launch.studies.verdict import FAILS, HOLDS, held_to, shown
from headwater.train.artifacts import read_json

AGREE = 0.8
"""Least correlation of what a fact loses alone with what it loses beside others."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Every fact and window of all seeds, from the trainings that drop several at once.

    owner_C: int, the person, numbered over all seeds.
    window_C: int.
    lost_C: float64, how much lower the question's log-probability is without the exposures, in nats.
    dropped: of each training, the visits that it lacks.
    told: of each predictor float64 [C].
    alone_A, beside_A: float64, what was lost by cells that were dropped again alone, and beside others.
    bystanders_B: float64, what questions about people lost whose exposures a training kept.
    unrest_B: int, the window in which that training dropped others' exposures.
    nothing: the largest difference of any question's log-probability where nothing was dropped.
    """

    owner_C: np.ndarray
    window_C: np.ndarray
    lost_C: np.ndarray
    dropped: list[int]
    told: dict[str, np.ndarray]
    alone_A: np.ndarray
    beside_A: np.ndarray
    bystanders_B: np.ndarray
    unrest_B: np.ndarray
    nothing: float


def read_measured(settings: ExposuresSettings) -> Measured:
    """Reads the trainings of all seeds."""
    owner, window, lost, dropped = [], [], [], []
    alone, beside, bystanders, unrest = [], [], [], []
    told: dict[str, list[float]] = {name: [] for name in PREDICTORS}
    nothing = 0.0
    for seed in settings.seeds:
        home = seed_path(settings, seed)
        cells, foretold = read_cells(home), read_json(predictions_file(home))
        subjects = [query.record["subject"] for query in queries_of(home)]
        whole_Q = read_outputs(model_run(home).path)[:, 0]
        here: dict[tuple[int, int], float] = {}
        for name, each in cells.items():
            lost_Q = whole_Q - read_outputs(dropped_run(home, name).path)[:, 0]
            if name == NOTHING:
                nothing = max(nothing, float(np.abs(lost_Q).max()))
            elif name.startswith("alone"):
                alone += [lost_Q[cell.probe] for cell in each]
                beside += [here[cell.probe, cell.window] for cell in each]
            else:
                here |= {(cell.probe, cell.window): float(lost_Q[cell.probe]) for cell in each}
                owner += [f"{seed}/{cell.subject}" for cell in each]
                window += [cell.window for cell in each]
                lost += [float(lost_Q[cell.probe]) for cell in each]
                for predictor in PREDICTORS:
                    told[predictor] += foretold[name][predictor]
                met = {cell.subject for cell in each}
                kept = [float(value) for value, who in zip(lost_Q, subjects, strict=True) if who not in met]
                bystanders += kept
                unrest += [each[0].window] * len(kept)
                dropped.append(read_json(dropped_run(home, name).path / "difference.json")["dropped"])
    return Measured(
        np.unique(owner, return_inverse=True)[1],
        np.array(window),
        np.array(lost),
        dropped,
        {name: np.array(values) for name, values in told.items()},
        np.array(alone),
        np.array(beside),
        np.array(bystanders),
        np.array(unrest),
        nothing,
    )


def summarise(settings: ExposuresSettings) -> dict[str, Any]:
    """The study's figures: a function of what the parts have left, and of no clock.

    Returns:
        What dropping took, by window; each predictor's rank correlation with it over all facts and windows, and within
        windows; its lead over the trivial ones; what facts lose alone and beside others; then the claims. Intervals are
        [value, low, high], over people drawn with replacement.
    """
    measured = read_measured(settings)
    lost_C, owner_C = measured.lost_C, measured.owner_C
    kept = ("preset", "pretrain", "windows", "together", "proj", "checkpoints")
    summary: dict[str, Any] = {
        "setting": {name: getattr(settings, name) for name in kept},
        "seeds": settings.seeds,
        "cells": len(lost_C),
        "people": len(np.unique(owner_C)),
        "trainings": len(measured.dropped),
        "dropped": [float(np.mean(measured.dropped)), min(measured.dropped), max(measured.dropped)],
        "lost": cluster_bootstrap(owner_C, lambda at: float(lost_C[at].mean())),
        "by_window": [of_window(measured, number) for number in range(settings.windows)],
        "predictors": correlated(measured),
        "bystanders": bystander_figures(measured),
        "lost_spread": float(lost_C.std()),
        "attainable": attainable(measured),
        "nothing": measured.nothing,
        "alone": alone_figures(measured),
    }
    return summary | {"claims": judge(summary)}


def correlated(measured: Measured) -> dict[str, Any]:
    """Of each predictor its correlation over all facts and windows, and within windows, and for ours how far they are
    above each trivial one's; a draw of people is the same for all."""
    told_CP = np.stack([measured.told[name] for name in PREDICTORS], axis=1)
    lost_C, window_C, names = measured.lost_C, measured.window_C, list(PREDICTORS)
    whole = {key: f(told_CP, lost_C, window_C) for key, f in STATISTICS.items()}
    draws: dict[str, list[np.ndarray]] = {key: [] for key in STATISTICS}
    for at in cluster_draws(measured.owner_C):
        for key, f in STATISTICS.items():
            draws[key].append(f(told_CP[at], lost_C[at], window_C[at]))
    drawn = {key: np.stack(each) for key, each in draws.items()}

    def spread(key: str, name: str, less: str = "") -> list[float]:
        value_P, drawn_RP, place = whole[key], drawn[key], names.index(name)
        value, value_R = value_P[place], drawn_RP[:, place]
        if less:
            other = names.index(less)
            value, value_R = value - value_P[other], value_R - drawn_RP[:, other]
        return [float(value), *(float(each) for each in np.quantile(value_R, [0.025, 0.975]))]

    found: dict[str, Any] = {name: {key: spread(key, name) for key in STATISTICS} for name in names}
    for name in OURS:
        found[name]["above"] = {other: {key: spread(key, name, other) for key in STATISTICS} for other in TRIVIAL}
    return found


def of_window(measured: Measured, number: int) -> dict[str, Any]:
    """What a window's exposures were worth, how many there were, how far the questions of others moved without them
    (its noise), and each predictor's correlation."""
    at = np.flatnonzero(measured.window_C == number)
    lost_c = measured.lost_C[at]
    others = measured.bystanders_B[measured.unrest_B == number]
    found: dict[str, Any] = {
        "lost": cluster_bootstrap(measured.owner_C[at], lambda places: float(lost_c[places].mean())),
        "exposures": float(measured.told["count"][at].mean()),
        "bystanders": float(others.std()) if len(others) else None,
        "correlation": {},
    }
    for name in OURS:
        pair_c2 = np.stack([measured.told[name][at], lost_c], axis=1)
        found["correlation"][name] = cluster_bootstrap(measured.owner_C[at], partial(correlated_pair, pair_c2))
    return found


def correlated_pair(pair_c2: np.ndarray, places: np.ndarray) -> float:
    """Spearman's correlation of two columns, at some places."""
    return correlation(pair_c2[places, 0], pair_c2[places, 1])


def bystander_figures(measured: Measured) -> dict[str, float]:
    """What questions lost about people whose exposures a training kept; empty where it dropped some of everybody's."""
    values_B = measured.bystanders_B
    return {"mean": float(values_B.mean()), "spread": float(values_B.std())} if len(values_B) else {}


def attainable(measured: Measured) -> float | None:
    """The correlation that the effects themselves would have with what was measured, were all that bystanders lose
    noise: the root of the share of the variance that is not theirs. None without bystanders."""
    spread = float(measured.lost_C.std())
    if not len(measured.bystanders_B) or not spread:
        return None
    return float(np.sqrt(max(0.0, 1 - (float(measured.bystanders_B.std()) / spread) ** 2)))


def alone_figures(measured: Measured) -> dict[str, Any]:
    """How far what a fact loses alone is what it loses beside others."""
    alone_A, beside_A = measured.alone_A, measured.beside_A
    if len(alone_A) < 3:
        return {"cells": len(alone_A)}
    return {
        "cells": len(alone_A),
        "correlation": cluster_bootstrap(np.arange(len(alone_A)), lambda at: correlation(alone_A[at], beside_A[at])),
        "difference": float(np.abs(alone_A - beside_A).mean()),
        "lost": float(np.abs(alone_A).mean()),
    }


def correlation(a_n: np.ndarray, b_n: np.ndarray) -> float:
    """Spearman's; 0 where one has no order."""
    return float(rank_correlations(a_n[:, None], b_n[:, None])[0])


def overall(told_nP: np.ndarray, lost_n: np.ndarray, window_n: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each predictor with what was lost, over all facts and windows: float64 [P]."""
    return rank_correlations(told_nP, np.repeat(lost_n[:, None], told_nP.shape[1], axis=1))


def within(told_nP: np.ndarray, lost_n: np.ndarray, window_n: np.ndarray) -> np.ndarray:
    """Its mean over windows, each by itself: which fact, not which window; float64 [P]."""
    places = [np.flatnonzero(window_n == each) for each in np.unique(window_n)]
    return np.mean([overall(told_nP[at], lost_n[at], window_n[at]) for at in places], axis=0)


STATISTICS = {"overall": overall, "within": within}


def judge(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the study is held to."""
    claims: list[dict[str, str]] = []

    def claim(what: str, holds: str, measured: str) -> None:
        claims.append({"claim": what, "status": holds, "measured": measured})

    nothing = summary["nothing"]
    claim("With nothing dropped, nothing changes", HOLDS if nothing == 0 else FAILS, f"{nothing:g} nats at most")
    claim("Dropping a window's exposures costs log-probability", above(summary["lost"]), shown(summary["lost"]))
    if "correlation" in summary["alone"]:
        value = summary["alone"]["correlation"]
        claim(
            f"Facts do not interfere: alone against beside others at least {AGREE}", held_to(value, AGREE), shown(value)
        )
    ours = summary["predictors"]["visits"]
    for key, where in (("overall", "over facts and windows"), ("within", "within windows")):
        claim(f"Captured visits foretell it, {where}", above(ours[key]), shown(ours[key]))
        for other in TRIVIAL:
            value = ours["above"][other][key]
            claim(f"They do so better than: {PREDICTORS[other].lower()}, {where}", above(value), shown(value))
    return claims


def above(value: Sequence[float]) -> str:
    """Whether [value, low, high] lies above zero."""
    return HOLDS if value[1] > 0 else FAILS
