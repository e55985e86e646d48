"""One part of the study of overlearnt facts, in a process of its own.

    python -m headwater.launch.studies.overlearnt.process runs/study/overlearnt/seed-0/model [CORES]

A model is trained with capture, indexed at its checkpoints and evaluated; then the facts are drawn and the passages
named that are to be left out. A retraining takes its corpus from the model and leaves one of these lists out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.tracing.queries import Query, read_queries
from headwater.configs import load_config
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, pretrain_whole, share_corpus, trained_steps
from headwater.launch.studies.overlearnt.settings import OverlearntSettings, saved_steps
from headwater.train.artifacts import RunDir, write_bytes, write_json
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
    from headwater.attribution.evaluation.ranking import read_rankings

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
    probability = last_probabilities(run)
    leave_out = settings.leave_out
    chosen = draw_facts(probability, leave_out.known, leave_out.facts, seed)
    asked_of = [queries[i] for i in chosen]
    for arm in leave_out.arms:
        if arm == "gold":
            named = [list(query.gold) for query in asked_of]
        elif arm == "random":
            named = [random_passages(run, asked_of, leave_out.top * len(asked_of), seed)]
        else:
            rankings = read_rankings(run.evaluation / f"{arm}.jsonl")
            named = [list(rankings[i].ranking[: leave_out.top]) for i in chosen]
        removed = sorted({name for each in named for name in each})
        write_bytes(run.path / "leave_out" / f"{arm}.txt", "".join(f"{name}\n" for name in removed).encode())
    facts = [{"probe": i, "example_id": queries[i].example_id, "prob": float(probability[i])} for i in chosen]
    write_json(run.path / "leave_out" / "facts.json", facts)


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


def last_probabilities(run: RunDir) -> np.ndarray:
    """Probability of each probe's whole target at the end of training: float64 [probes]."""
    import pyarrow.parquet as pq

    table = pq.read_table(run.probes)
    steps = table["step"].to_numpy()
    last = steps == steps.max()
    order = np.argsort(table["probe"].to_numpy()[last], kind="stable")
    return table["prob"].to_numpy()[last][order].astype(np.float64)


def draw_facts(probability_Q: np.ndarray, known: float, count: int, seed: int) -> list[int]:
    """Numbers of `count` probes, drawn by the seed among those whose target is at least as probable as `known`; where
    these are too few, the most probable ones."""
    over = np.flatnonzero(probability_Q >= known)
    if len(over) < count:
        return sorted(np.argsort(-probability_Q, kind="stable")[:count].tolist())
    return sorted(np.random.default_rng(seed).permutation(over)[:count].tolist())


def random_passages(run: RunDir, queries: Sequence[Query], count: int, seed: int) -> list[str]:
    """Planted passages that state none of the queries' facts: what leaving out as many of their kind does by itself."""
    from headwater.train.stream.passages import open_passages

    gold = {name for query in queries for name in query.gold}
    passages = open_passages(run)
    planted = [name for corpus in passages.corpora[1:] for name in corpus.ids(0, corpus.passages)]
    others = [name for name in planted if name not in gold]
    drawn = np.random.default_rng(seed).permutation(len(others))[:count]
    return [others[i] for i in drawn]


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(train_and_trace)))
