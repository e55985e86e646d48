"""What the parts of the study of tracing have measured, question by question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.metrics import recall, reciprocal_rank
from headwater.attribution.evaluation.ranking import read_rankings
from headwater.launch.studies.leave_out import probed, read_drops
from headwater.launch.studies.tracing.questions import read_questions, seen_mask
from headwater.launch.studies.tracing.settings import (
    ANSWERS,
    METHODS,
    TracingSettings,
    arms_at,
    model_run,
    traced_path,
    trained_at,
    without_run,
)
from headwater.train.artifacts import read_json

UNKNOWN = float("nan")


@dataclass(frozen=True, slots=True)
class Point:
    """A model after a step. Q: questions, in the order of the seed's file.

    Attributes:
        values: by method and metric, float64 [Q]; NaN where it was not measured.
        probability_Q: of the answer.
        classes: by method, kinds of the first passages: int [Q, depth].
        first: by method, the id of each question's first passage.
        texts: of these.
        drops: by arm of leaving out, float64 [facts].
    """

    values: dict[str, dict[str, np.ndarray]]
    probability_Q: np.ndarray
    classes: dict[str, np.ndarray]
    first: dict[str, list[str]]
    texts: dict[str, str]
    drops: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Seed:
    """The models of a seed.

    Attributes:
        questions: their records.
        seen_Q: which of them are about what the models were shown.
        points: by size and step.
    """

    questions: list[dict[str, Any]]
    seen_Q: np.ndarray
    points: dict[tuple[str, int], Point]

    def stack(self, places: list[tuple[str, int]], method: str, metric: str, *, seen: bool = True) -> np.ndarray:
        """A metric at some points, of the questions that were shown or of the others: float64 [questions, points]."""
        columns = [self.points[place].values[method][metric] for place in places]
        return np.stack(columns, axis=1)[self.seen_Q == seen]


def read_seed(settings: TracingSettings, seed: int) -> Seed:
    """Everything of a seed."""
    first = model_run(settings, seed, settings.sizes[0].name)
    questions = read_questions(first.path)
    points = {
        (size.name, step): read_point(settings, seed, size.name, step, [each.example_id for each in questions])
        for size in settings.sizes
        for step in trained_at(settings)
    }
    return Seed([dict(each.record) for each in questions], seen_mask(questions), points)


def read_point(settings: TracingSettings, seed: int, size: str, step: int, names: list[str]) -> Point:
    """What the tracing of a model after a step, and the trainings without what it names, have left."""
    path, run = traced_path(settings, seed, size, step), model_run(settings, seed, size)
    values = {method: retrieved(path / f"{method}.jsonl") for method in METHODS}
    values["gold"] = {}
    noted = read_json(path / "tail_patch.json") if (path / "tail_patch.json").exists() else {"queries": [], "rise": {}}
    places = [names.index(each) for each in noted["queries"]]
    for method, metrics in values.items():
        metrics["tail_patch"] = np.full(len(names), UNKNOWN)
        metrics["tail_patch"][places] = noted["rise"].get(method, [])
    tops = read_json(path / "tops.json")
    drops = {}
    if step and settings.leave_out.facts:
        arms = arms_at(settings, step)
        runs = {trained: without_run(settings, seed, size, trained) for trained in arms.values()}
        found = read_drops(run, runs, step, ANSWERS)
        drops = {arm: found[trained]["drop"] for arm, trained in arms.items()}
    return Point(
        values=values,
        probability_Q=probed(run, step, file=run.path / ANSWERS),
        classes={method: np.array(each) for method, each in read_json(path / "classes.json").items()},
        first=tops["first"],
        texts=tops["texts"],
        drops=drops,
    )


def retrieved(path: Path) -> dict[str, np.ndarray]:
    """MRR's terms and recall@10 of every question."""
    ranks = [each.gold_ranks for each in read_rankings(path)]
    measures: dict[str, Callable[..., np.ndarray]] = {"mrr": reciprocal_rank, "recall@10": recall}
    return {name: measure(ranks) for name, measure in measures.items()}
