"""One part of the study of overlearnt facts, in a process of its own.

    python -m headwater.launch.studies.overlearnt.process runs/study/overlearnt/seed-0/model [CORES]

A model is trained with capture, indexed at its checkpoints and evaluated; then the facts are drawn and the passages
named that are to be left out. A retraining takes its corpus from the model and leaves one of these lists out.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from headwater.attribution.tracing.queries import read_queries
from headwater.configs import load_config
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, pretrain_whole, share_corpus, trained_steps
from headwater.launch.studies.leave_out import draw_facts, named_by, probed, write_lists
from headwater.launch.studies.overlearnt.settings import OverlearntSettings, saved_steps
from headwater.train.artifacts import RunDir
from headwater.train.settings import PretrainSettings


def train_and_trace(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    factors = task["factors"]
    if factors["part"] == "retraining":
        share_corpus(Path(factors["model"]), path)
    status = pretrain_whole(path, load_config(PretrainSettings, task["preset"], task["overrides"]))
    if status == 0 and factors["part"] == "model":
        settings = load_config(OverlearntSettings, path.parent.parent / "config.yaml")
        trace_model(RunDir(path), settings, factors["seed"])
    return status


def trace_model(run: RunDir, settings: OverlearntSettings, seed: int) -> None:
    """Indexes and evaluates a trained model, then writes leave_out/: one list of passages an arm, and facts.json."""
    from headwater.attribution.evaluation.evaluate import GradientMethod, evaluate_methods

    steps = saved_steps(settings, trained_steps(run.path))
    earlier = [f"trackstar-{step}" for step in steps[:-1]]
    build_indexes(run, settings, seed, steps)
    methods = {
        "last_cross_entropy": GradientMethod("trackstar", "task"),
        "last_log_odds": GradientMethod("headwater", "task"),
        "checkpoints": GradientMethod("trackstar", "task", also=tuple(earlier)),
        "captured": GradientMethod("captured", "task"),
        "captured_log_odds": GradientMethod("captured", "task", also=("headwater",)),
    }
    if not (run.evaluation / "table.json").exists():
        asked = replace(settings.evaluate, run=str(run.path), seed=seed)
        evaluate_methods(run, methods, asked, reference="captured")
    queries = read_queries(run.facts / "probes.jsonl")
    probability = probed(run)
    leave_out = settings.leave_out
    chosen = draw_facts(probability, leave_out.known, leave_out.facts, seed)
    named = named_by(run.evaluation, run, leave_out.arms, [queries[i] for i in chosen], leave_out.top, seed)
    write_lists(run, queries, probability, chosen, named)


def build_indexes(run: RunDir, settings: OverlearntSettings, seed: int, steps: list[int]) -> None:
    """The last checkpoint's rows with log-odds (`headwater`) and, of every saved one, with the cross entropy
    (`trackstar`, and `trackstar-STEP` for the earlier ones). Training has made the captured ones."""
    from headwater.attribution.index.build import build_index

    base = replace(settings.index, out="", projection=replace(settings.index.projection, seed=seed))
    for step in reversed(steps):
        model = replace(base.model, run=str(run.path), path="", step=step)
        name = "trackstar" if step == steps[-1] else f"trackstar-{step}"
        build_index(replace(base, model=model, name=name, loss="cross_entropy"))
        if step == steps[-1]:
            build_index(replace(base, model=model, name="headwater", loss="log_odds"))


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(train_and_trace)))
