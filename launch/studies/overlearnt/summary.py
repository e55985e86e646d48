"""From the parts of the study of overlearnt facts to its summary: retrieval, leave-out, what the study is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import RESAMPLES, interval, paired, resampled_means
from headwater.attribution.evaluation.ranking import Ranking, read_rankings
from headwater.attribution.evaluation.table import build_table, format_interval
from headwater.launch.studies.overlearnt.process import last_probabilities
from headwater.launch.studies.overlearnt.settings import LABELS, METHODS, OverlearntSettings, model_run
from headwater.launch.studies.verdict import FAILS, HOLDS, held_to
from headwater.train.artifacts import RunDir, read_json

HELD_TO = {"last_log_odds": 0.85, "captured": 0.90}
"""Least MRR."""
SHARE_OF_GOLD = 0.85
"""Least share of the drop that leaving out the gold passages brings."""


def summarise(settings: OverlearntSettings) -> dict[str, Any]:
    """The study's figures: a function of what the parts have left, and of no clock."""
    asked = {seed: read_measured(settings, seed) for seed in settings.seeds}
    drops = {seed: read_drops(settings, seed) for seed in settings.seeds}
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


def pool(asked: Mapping[int, tuple[dict[str, list[Ranking]], dict[str, np.ndarray] | None]]) -> tuple[Any, Any]:
    """All seeds' queries as one set."""
    rankings: dict[str, list[Ranking]] = {}
    patched: dict[str, list[np.ndarray]] = {}
    for seed, (ranked, rises) in asked.items():
        for name, each in ranked.items():
            rankings.setdefault(name, []).extend(replace(r, example_id=f"{seed}/{r.example_id}") for r in each)
        for name, values in (rises or {}).items():
            patched.setdefault(name, []).append(values)
    return rankings, {name: np.concatenate(parts) for name, parts in patched.items()} or None


def model_figures(run: RunDir, known: float) -> dict[str, float]:
    """Probes, their targets' mean probability at the end of training, and the share of those that are known."""
    probability = last_probabilities(run)
    return {
        "probes": len(probability),
        "target_prob": float(probability.mean()),
        "known": float(np.mean(probability >= known)),
    }


def read_drops(settings: OverlearntSettings, seed: int) -> dict[str, dict[str, Any]]:
    """Per arm: how many passages were left out, each fact's probability before, and its drop: float64 [facts]."""
    model = model_run(settings, seed)
    facts = read_json(model.path / "leave_out" / "facts.json")
    places = [fact["probe"] for fact in facts]
    before_F = last_probabilities(model)[places]
    arms = {}
    for arm in settings.leave_out.arms:
        after_F = last_probabilities(RunDir(model.path.parent / f"without-{arm.replace('_', '-')}"))[places]
        passages = len((model.path / "leave_out" / f"{arm}.txt").read_text().splitlines())
        arms[arm] = {"passages": passages, "drop": before_F - after_F, "before": before_F}
    return arms


def joined(parts: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {
        arm: {
            "passages": sum(part[arm]["passages"] for part in parts),
            "drop": np.concatenate([part[arm]["drop"] for part in parts]),
            "before": np.concatenate([part[arm]["before"] for part in parts]),
        }
        for arm in parts[0]
    }


def leave_out_table(arms: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Per arm: passages left out, facts, their mean probability before, its drop, the drop as a share of gold's, and
    what it is above the random arm's, fact by fact; intervals over facts drawn with replacement."""
    table = {}
    for arm, row in arms.items():
        entry: dict[str, Any] = {
            "passages": row["passages"],
            "facts": len(row["drop"]),
            "before": float(row["before"].mean()),
            "drop": interval(row["drop"]),
        }
        if "gold" in arms:
            entry["share_of_gold"] = share(row["drop"], arms["gold"]["drop"])
        if "random" in arms:
            entry["above_random"] = paired(row["drop"], arms["random"]["drop"]).difference
        table[arm] = entry
    return table


def share(drop_F: np.ndarray, gold_F: np.ndarray) -> list[float]:
    """[ratio of the means, low, high]; both means of a draw are over the same facts."""
    over_R = resampled_means(gold_F, RESAMPLES, 0)
    under = np.where(np.abs(over_R) < 1e-9, np.nan, over_R)
    low, high = np.nanquantile(resampled_means(drop_F, RESAMPLES, 0) / under, [0.025, 0.975])
    whole = float(gold_F.mean())
    return [float(drop_F.mean()) / whole if whole else float("nan"), float(low), float(high)]


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


def as_interval(value: list[float] | None) -> str:
    return format_interval("mrr", value)
