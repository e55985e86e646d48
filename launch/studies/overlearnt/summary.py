"""From the parts of the study of overlearnt facts to its summary: retrieval, leave-out, what the study is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headwater.attribution.evaluation.ranking import Ranking, read_rankings
from headwater.attribution.evaluation.table import build_table
from headwater.launch.studies.leave_out import joined, leave_out_table, pool, probed, read_drops
from headwater.launch.studies.overlearnt.settings import LABELS, METHODS, OverlearntSettings, model_run
from headwater.launch.studies.page import as_interval
from headwater.launch.studies.verdict import FAILS, HOLDS, held_to
from headwater.train.artifacts import RunDir, read_json

HELD_TO = {"last_log_odds": 0.85, "captured": 0.90}
"""Least MRR."""
SHARE_OF_GOLD = 0.85
"""Least share of the drop that leaving out the gold passages brings."""


def summarise(settings: OverlearntSettings) -> dict[str, Any]:
    """The study's figures: a function of what the parts have left, and of no clock."""
    asked = {seed: read_measured(settings, seed) for seed in settings.seeds}
    drops = {seed: drops_of(settings, seed) for seed in settings.seeds}
    seeds = {}
    for seed in settings.seeds:
        rankings, patched = asked[seed]
        seeds[str(seed)] = {
            **build_table(rankings, patched, reference="captured", seed=0),
            "leave_out": leave_out_table(drops[seed]),
            "model": model_figures(model_run(settings, seed), settings.leave_out.known),
        }
    pooled = {
        **build_table(*pool(asked), reference="captured", seed=0),
        "leave_out": leave_out_table(joined(list(drops.values()))),
    }
    setting = {name: getattr(settings, name) for name in ("preset", "pretrain", "precision", "checkpoints")}
    return {"setting": setting, "seeds": seeds, "pooled": pooled, "claims": judge(pooled, seeds)}


def read_measured(
    settings: OverlearntSettings, seed: int
) -> tuple[dict[str, list[Ranking]], dict[str, np.ndarray] | None]:
    """The rankings of every method, and the tail-patch of each query if it was measured."""
    run = model_run(settings, seed)
    names = [*METHODS, "bm25", "random"]
    rankings = {name: read_rankings(run.evaluation / f"{name}.jsonl") for name in names}
    if not settings.evaluate.tail_patch.enabled:
        return rankings, None
    rise = read_json(run.evaluation / "tail_patch.json")["rise"]
    return rankings, {name: np.array(values) for name, values in rise.items()}


def model_figures(run: RunDir, known: float) -> dict[str, float]:
    """Probes, their targets' mean probability at the end of training, and the share of those that are known."""
    probability = probed(run)
    return {
        "probes": len(probability),
        "target_prob": float(probability.mean()),
        "known": float(np.mean(probability >= known)),
    }


def drops_of(settings: OverlearntSettings, seed: int) -> dict[str, dict[str, Any]]:
    """The drops of a seed's facts, by arm."""
    model = model_run(settings, seed)
    arms = {arm: RunDir(model.path.parent / f"without-{arm.replace('_', '-')}") for arm in settings.leave_out.arms}
    return read_drops(model, arms)


def judge(pooled: Mapping[str, Any], seeds: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the study is held to, over all seeds: `holds` where the interval lies above the bound, `holds on average`
    where only the mean does."""
    claims = []
    for method, bound in HELD_TO.items():
        value = pooled["methods"][method]["mrr"]
        each = ", ".join(f"seed {seed}: {row['methods'][method]['mrr'][0]:.3f}" for seed, row in seeds.items())
        what = f"{LABELS[method]}: MRR at least {bound:.2f}"
        claims.append({"claim": what, "status": held_to(value, bound), "measured": f"{as_interval(value)}; {each}"})
    for method in HELD_TO:
        row = pooled["leave_out"].get(method)
        if row is None:
            continue
        if "share_of_gold" in row:
            value = row["share_of_gold"]
            what = f"{LABELS[method]}: leaving out what it names takes at least {SHARE_OF_GOLD:.0%} of gold's drop"
            claims.append({"claim": what, "status": held_to(value, SHARE_OF_GOLD), "measured": as_interval(value)})
        if "above_random" in row:
            value = row["above_random"]
            what = f"{LABELS[method]}: its drop is clear of random passages'"
            claims.append({"claim": what, "status": HOLDS if value[1] > 0 else FAILS, "measured": as_interval(value)})
    return claims
