"""Holds the methods against the gold passages of a run, or of any index (any_index.py).

    headwater evaluate evaluate/default run=runs/demo

Gradient methods read the indexes that the run has: `headwater` (log-odds), `trackstar` (cross entropy), both with
the task's curvature, and `gradient` (cross entropy, no correction, no curvature) for cosine and dot product.
BM25, random and other baselines stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.any_index import baselines, evaluate_index, rankings_of
from headwater.attribution.evaluation.metrics import METRICS
from headwater.attribution.evaluation.own_text import asked_for, own_passages, told_apart
from headwater.attribution.evaluation.ranking import Ranking, numbers_of_lists, write_rankings
from headwater.attribution.evaluation.table import build_table, write_table
from headwater.attribution.evaluation.tail_patch import Rises, TailPatch, tail_patch
from headwater.attribution.index.reader import open_index
from headwater.attribution.models.base import Example
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.attribution.search.scorer import Scoring
from headwater.attribution.settings import EvaluateSettings
from headwater.attribution.tracing.attributor import Attributor
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.attribution.tracing.query_rows import examples_of
from headwater.configs.errors import MissingError
from headwater.train import parallel
from headwater.train.artifacts import RunDir, write_json
from headwater.train.checkpoint import open_checkpoint
from headwater.train.numerics import keep_freed_memory, use_onednn
from headwater.train.stream.passages import PassageSet, open_passages


@dataclass(frozen=True, slots=True)
class GradientMethod:
    """A way to score the rows of an index, or of several (`also`) whose scores are added."""

    index: str
    curvature: str
    normalize: bool = True
    also: tuple[str, ...] = ()


GRADIENT_METHODS = {
    "headwater": GradientMethod("headwater", "task"),
    "trackstar": GradientMethod("trackstar", "task"),
    "gradient_cosine": GradientMethod("gradient", "none"),
    "gradient_dot": GradientMethod("gradient", "none", normalize=False),
}


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Ranks, measures, and writes RUN/evaluation (or OUT): one file a method, and table.json, which is returned.

    Raises:
        MissingError: the run has no probes or no index.
    """
    if settings.index:
        return evaluate_index(settings)
    run = RunDir.at(settings.run)
    if not (run.facts / "probes.jsonl").exists():
        raise MissingError(f"{run.facts}/probes.jsonl is missing", fix="run `headwater corpus` first")
    methods = {name: m for name, m in GRADIENT_METHODS.items() if (run.index(m.index) / "index.json").exists()}
    if not methods:
        raise MissingError(f"{run.path} has no index", fix="run `headwater index` first")
    return evaluate_methods(run, methods, settings)


def evaluate_methods(
    run: RunDir, methods: Mapping[str, GradientMethod], settings: EvaluateSettings, reference: str = "headwater"
) -> dict[str, Any]:
    """Ranks with these methods and the baselines; writes rankings, tail-patch, and table.json, which is returned.

    Args:
        reference: the method that the table compares the others with.
    """
    queries = read_queries(run.facts / "probes.jsonl")
    world = parallel.start()
    try:
        keep_freed_memory()
        use_onednn()
        passages = open_passages(run)
        own = own_passages(queries, passages)
        asked = asked_for(queries, own)
        rankings = {}
        for name, method in methods.items():
            rankings[name] = gradient_rankings(run, method, asked, settings, world)
        for baseline in baselines(settings):
            rankings[baseline.name] = baseline.rank(asked, passages)
        rankings = {name: told_apart(each, own) for name, each in rankings.items()}
        for name, each in rankings.items():
            write_rankings(run.evaluation / f"{name}.jsonl", each)
        rises = Rises({}, {})
        if settings.tail_patch.enabled:
            step = last_indexed_step(run, methods)
            rises = measure_tail_patch(run, step, settings, queries, rankings, passages, world)
        table = build_table(
            rankings,
            rises.probability,
            rises.log_probability,
            metrics=(*METRICS, *settings.more_metrics),
            reference=reference,
            seed=settings.seed,
        )
        write_table(run.evaluation / "table.json", table)
    finally:
        parallel.stop()
    return table


def gradient_rankings(
    run: RunDir,
    method: GradientMethod,
    queries: list[Query],
    settings: EvaluateSettings,
    world: parallel.World,
) -> list[Ranking]:
    """The full ranking of every query by one method: its best passages, and the places of the gold ones."""
    scoring = Scoring(curvature=method.curvature, task_weight=settings.task_weight, normalize=method.normalize)
    also = [run.index(name) for name in method.also]
    with Attributor.open(run.index(method.index), also=also, world=world) as attributor:
        return rankings_of(attributor, queries, scoring)


def measure_tail_patch(
    run: RunDir,
    step: int,
    settings: EvaluateSettings,
    queries: list[Query],
    rankings: dict[str, list[Ranking]],
    passages: PassageSet,
    world: parallel.World,
    out: Path | None = None,
) -> Rises:
    """Tail-patch of every method's top passages, and of the gold ones, at the checkpoint of a step; tail_patch.json has
    each query's.

    Args:
        out: where tail_patch.json goes; the run's evaluation if not given.
    """
    chosen = np.arange(len(queries))
    if 0 < settings.tail_patch.queries < len(queries):
        drawn = np.random.default_rng(settings.seed).permutation(len(queries))[: settings.tail_patch.queries]
        chosen = np.sort(drawn)
    top = settings.tail_patch.top
    names = {name: [each[i].ranking[:top] for i in chosen] for name, each in rankings.items()}
    names["gold"] = [queries[i].gold for i in chosen]
    numbers = iter(numbers_of_lists([ids for each in names.values() for ids in each], passages))
    lists = {name: [next(numbers).tolist() for _ in each] for name, each in names.items()}
    named = {number for each in lists.values() for members in each for number in members}
    examples = {number: Example.of_passage(passages, number) for number in named}
    model = HeadwaterModel(open_checkpoint(run.checkpoint(step)), world)
    patch = TailPatch(model, settings.tail_patch.lr)
    prompts = examples_of([queries[i] for i in chosen], passages.tokenizer, None)
    rises = tail_patch(patch, prompts, lists, examples)
    note = {"lr": patch.lr, "step": step, "queries": [queries[i].example_id for i in chosen]}
    both = {"rise": rises.probability, "log_rise": rises.log_probability}
    values = {key: {name: rise_Q.tolist() for name, rise_Q in each.items()} for key, each in both.items()}
    write_json((out or run.evaluation) / "tail_patch.json", {**note, **values})
    return rises


def last_indexed_step(run: RunDir, methods: Mapping[str, GradientMethod]) -> int:
    return max(int(open_index(run.index(method.index)).manifest["model"]["step"]) for method in methods.values())
