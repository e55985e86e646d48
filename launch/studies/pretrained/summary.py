"""From the parts of the study of a real pretrained model to its summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import interval, paired
from headwater.attribution.evaluation.ranking import read_rankings
from headwater.attribution.evaluation.table import build_table
from headwater.launch.studies.leave_out import joined, leave_out_table, pool, probed, read_drops
from headwater.launch.studies.pretrained.common import common_facts, common_file
from headwater.launch.studies.pretrained.settings import (
    METHODS,
    PretrainedSettings,
    left_out_step,
    model_run,
    traced_path,
    without_run,
)
from headwater.launch.studies.verdict import FAILS, HOLDS, held_to, shown
from headwater.train.artifacts import RunDir, read_json
from headwater.train.tables import read_table

LEAST_MRR, SHARE_OF_GOLD, KEPT = 0.85, 0.85, 0.8
"""What the study is held to: MRR, share of gold's drop, share of the probability of what was known before."""


def summarise(settings: PretrainedSettings) -> dict[str, Any]:
    """The study's figures: a function of what the parts have left, and of no clock.

    Returns:
        The curve of the questions over training, each traced point's methods, leaving out, and the drift of what the
        model knew before; then the claims. Intervals are [mean, low, high], over the questions or facts of all seeds.
    """
    runs = [model_run(settings, seed) for seed in settings.seeds]
    points = {str(step): point(settings, runs, step) for step in settings.traced}
    step = left_out_step(settings)
    drops = []
    for seed, run in zip(settings.seeds, runs, strict=True):
        without = {arm: without_run(settings, seed, arm) for arm in settings.leave_out.arms}
        drops.append(read_drops(run, without, step))
    summary: dict[str, Any] = {
        "setting": {name: getattr(settings, name) for name in ("preset", "pretrain", "traced", "plain")},
        "model": Path(settings.model).name,
        "seeds": settings.seeds,
        "passages": [counted(run) for run in runs],
        "curve": curve(runs),
        "points": points,
        "left_out_step": step,
        "leave_out": leave_out_table(joined(drops)) if drops[0] else {},
        "drift": drift(runs),
    }
    summary["answers_at"] = next((row["step"] for row in summary["curve"] if row["exact"][0] >= settings.exact), None)
    return summary | {"claims": judge(settings, summary)}


def counted(run: RunDir) -> dict[str, int]:
    """How many passages, and how many of them are planted."""
    from headwater.train.stream.passages import open_passages

    passages = open_passages(run)
    return {"all": len(passages), "planted": len(passages) - passages.corpora[0].passages}


def curve(runs: list[RunDir]) -> list[dict[str, Any]]:
    """The questions, in wordings that training never shows, after every step at which they were asked."""
    steps = sorted({*np.asarray(read_table(runs[0].probes, ["step"], fix="restore it")["step"]).tolist()})
    return [
        {
            "step": step,
            "probability": interval(np.concatenate([probed(run, step) for run in runs])),
            "exact": interval(np.concatenate([probed(run, step, "exact") for run in runs])),
        }
        for step in steps
    ]


def point(settings: PretrainedSettings, runs: list[RunDir], step: int) -> dict[str, Any]:
    """The methods after a step."""
    asked = {}
    for seed, run in zip(settings.seeds, runs, strict=True):
        path = traced_path(settings, seed, step)
        rankings = {name: read_rankings(file) for name in METHODS if (file := path / f"{name}.jsonl").exists()}
        rises = None
        if step == left_out_step(settings) and settings.evaluate.tail_patch.enabled:
            told = read_json(run.evaluation / "tail_patch.json")["rise"]
            rises = {name: np.array(values) for name, values in told.items()}
        asked[seed] = rankings, rises
    return build_table(*pool(asked), reference="headwater", seed=0)


def drift(runs: list[RunDir]) -> dict[str, Any]:
    """What the model knew before it went on training, then and at the end."""
    found: dict[str, Any] = {}
    last = int(np.asarray(read_table(common_file(runs[0]), ["step"], fix="restore it")["step"]).max())
    values = {
        what: [np.concatenate([probed(run, step, what, common_file(run)) for run in runs]) for step in (0, last)]
        for what in ("prob", "exact")
    }
    stated = np.concatenate([stated_by(run) for run in runs])
    before, after = values["prob"]
    found["common"] = {
        "facts": len(common_facts()),
        "stated": int(stated.sum()),
        "before": interval(before),
        "after": interval(after),
        "change": paired(after, before).difference,
        "kept": interval(after - KEPT * before),
        "exact": [float(each.mean()) for each in values["exact"]],
    }
    if not stated.all():
        found["common"]["change_unstated"] = paired(after[~stated], before[~stated]).difference
    held_out = [looks for run in runs if (looks := validated(run))]
    if held_out:
        found["perplexity"] = {key: float(np.mean([looks[key] for looks in held_out])) for key in ("before", "after")}
        found["perplexity"]["tokens"] = held_out[0]["tokens"]
    return found


def stated_by(run: RunDir) -> np.ndarray:
    """Which of the common facts a passage of the corpus may state, since it holds their words: bool [facts]."""
    from headwater.train.stream.passages import open_passages

    passages = open_passages(run)
    texts = [passages.text(number) for number in range(passages.corpora[0].passages)]
    return np.array([any(f["target"] in text and f["subject"] in text for text in texts) for f in common_facts()])


def validated(run: RunDir) -> dict[str, float]:
    """Perplexity of the documents that were held out, over all sources, before and at the end; empty if there are
    none."""
    if not run.validation.exists():
        return {}
    looks = [json.loads(line) for line in run.validation.read_text().splitlines()]
    last = max(look["step"] for look in looks)
    told: dict[str, float] = {}
    for name, step in (("before", 0), ("after", last)):
        at = [look for look in looks if look["step"] == step]
        told["tokens"] = sum(look["tokens"] for look in at)
        told[name] = float(np.exp(sum(look["loss"] * look["tokens"] for look in at) / told["tokens"]))
    return told


def judge(settings: PretrainedSettings, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the study is held to."""
    claims: list[dict[str, str]] = []

    def claim(what: str, status: str, measured: str) -> None:
        claims.append({"claim": what, "status": status, "measured": measured})

    exact = summary["curve"][-1]["exact"]
    claim(f"It answers {settings.exact:.0%} of the questions at the end", held_to(exact, settings.exact), shown(exact))
    for step, row in summary["points"].items():
        value = row["methods"]["headwater"]["mrr"]
        claim(f"Headwater, step {step}: MRR at least {LEAST_MRR:.2f}", held_to(value, LEAST_MRR), shown(value))
    for step, row in summary["points"].items():
        for against in row["comparisons"]:
            if against["metric"] == "mrr" and against["against"] in ("gradient_cosine", "gradient_dot"):
                label, value = METHODS[against["against"]].lower(), against["difference"]
                status = HOLDS if value[1] > 0 else FAILS
                claim(f"Headwater, step {step}: MRR above that of the {label}", status, shown(value))
    row = summary["leave_out"].get("headwater", {})
    if "share_of_gold" in row:
        value = row["share_of_gold"]
        what = f"Leaving out what Headwater names takes at least {SHARE_OF_GOLD:.0%} of gold's drop"
        claim(what, held_to(value, SHARE_OF_GOLD), shown(value))
    if "above_random" in row:
        value = row["above_random"]
        claim("Its drop is clear of random passages'", HOLDS if value[1] > 0 else FAILS, shown(value))
    common = summary["drift"]["common"]
    what = f"What it knew keeps at least {KEPT:.0%} of its probability"
    claim(what, held_to(common["kept"], 0.0), f"{shown(common['before'])} before, {shown(common['after'])} after")
    return claims
