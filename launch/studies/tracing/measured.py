"""What the parts of the study of tracing have measured, question by question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.metrics import recall, reciprocal_rank
from headwater.attribution.evaluation.ranking import read_rankings
from headwater.attribution.tracing.queries import Query
from headwater.launch.studies.leave_out import lists_of, probed, read_drops
from headwater.launch.studies.resampling import over_seeds
from headwater.launch.studies.tracing.questions import other_questions, read_questions, seen_mask
from headwater.launch.studies.tracing.settings import (
    ANSWERS,
    ASKED_ANOTHER,
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
        classes_of_another: of the same passages, for another question's fact; -1 where there is no other.
        first: by method, the id of each question's first passage.
        texts: of these.
        drops: by arm of leaving out, float64 [Q]; NaN of questions that were not drawn.
        left_out: by arm, how many passages these are.
    """

    values: dict[str, dict[str, np.ndarray]]
    probability_Q: np.ndarray
    classes: dict[str, np.ndarray]
    classes_of_another: dict[str, np.ndarray]
    first: dict[str, list[str]]
    texts: dict[str, str]
    drops: dict[str, np.ndarray]
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class Seed:
    """The models of a seed. Q: questions, in the order of its file.

    Attributes:
        questions: their records.
        seen_Q: which of them are about what the models were shown.
        points: by size and step.
        shared: every seed asks these questions, about the same subjects.
    """

    questions: list[dict[str, Any]]
    seen_Q: np.ndarray
    points: dict[tuple[str, int], Point]
    shared: bool = False

    @property
    def subject_Q(self) -> np.ndarray:
        """Whom each question is about."""
        return np.array([str(each["subject"]) for each in self.questions])

    def stack(self, places: list[tuple[str, int]], method: str, metric: str, *, seen: bool = True) -> np.ndarray:
        """A metric at some points, float64 [Q, points]; NaN but of the questions that were shown, or of the others."""
        columns = [self.points[place].values[method][metric] for place in places]
        return self.among(np.stack(columns, axis=1), self.seen_Q == seen)

    def among(self, values: np.ndarray, mask_Q: np.ndarray) -> np.ndarray:
        """What is measured of each question, float64 [Q, ...]; NaN where the mask is false.

        They keep their places, so that seeds which ask the same questions are drawn from together.
        """
        found = np.array(values, dtype=np.float64)
        found[~mask_Q] = UNKNOWN
        return found


def interval_of(
    seeds: Sequence[Seed], values: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray] | None = None
) -> list[float] | None:
    """[value, low, high] over seeds and the questions' subjects of what was measured: of each seed, float64 [Q] or
    [Q, K]."""
    return over_seeds(values, [each.subject_Q for each in seeds], statistic, crossed=seeds[0].shared)


def read_seed(settings: TracingSettings, seed: int) -> Seed:
    """Everything of a seed."""
    first = model_run(settings, seed, settings.sizes[0].name)
    questions = read_questions(first.path)
    points = {
        (size.name, step): read_point(settings, seed, size.name, step, questions)
        for size in settings.sizes
        for step in trained_at(settings)
    }
    records = [dict(each.record) for each in questions]
    return Seed(records, seen_mask(questions), points, shared=bool(settings.questions))


def read_point(settings: TracingSettings, seed: int, size: str, step: int, questions: list[Query]) -> Point:
    """What the tracing of a model after a step, and the trainings without what it names, have left."""
    path, run = traced_path(settings, seed, size, step), model_run(settings, seed, size)
    names = [each.example_id for each in questions]
    values = {method: retrieved(path / f"{method}.jsonl") for method in (*METHODS, ASKED_ANOTHER)}
    without_other = np.array([place is None for place in other_questions(questions)])
    for each in values[ASKED_ANOTHER].values():
        each[without_other] = UNKNOWN
    values["gold"] = {}
    noted = read_json(path / "tail_patch.json") if (path / "tail_patch.json").exists() else {"queries": [], "rise": {}}
    places = [names.index(each) for each in noted["queries"]]
    for method, metrics in values.items():
        metrics["tail_patch"] = np.full(len(names), UNKNOWN)
        if method in noted["rise"]:
            metrics["tail_patch"][places] = noted["rise"][method]
    tops, kinds = read_json(path / "tops.json"), read_json(path / "classes.json")
    drops, left_out = {}, {}
    if step and settings.leave_out.facts:
        arms = arms_at(settings, step)
        runs = {trained: without_run(settings, seed, size, trained) for trained in arms.values()}
        found = read_drops(run, runs, step, ANSWERS)
        chosen = [fact["probe"] for fact in read_json(lists_of(run) / "facts.json")]
        for arm, trained in arms.items():
            drops[arm] = np.full(len(names), UNKNOWN)
            drops[arm][chosen] = found[trained]["drop"]
            left_out[arm] = found[trained]["passages"]
    return Point(
        values=values,
        probability_Q=probed(run, step, file=run.path / ANSWERS),
        classes={method: np.array(each) for method, each in kinds["own"].items()},
        classes_of_another={method: np.array(each) for method, each in kinds["another"].items()},
        first=tops["first"],
        texts=tops["texts"],
        drops=drops,
        left_out=left_out,
    )


def retrieved(path: Path) -> dict[str, np.ndarray]:
    """MRR's terms and recall@10 of every question."""
    ranks = [each.gold_ranks for each in read_rankings(path)]
    measures: dict[str, Callable[..., np.ndarray]] = {"mrr": reciprocal_rank, "recall@10": recall}
    return {name: measure(ranks) for name, measure in measures.items()}
