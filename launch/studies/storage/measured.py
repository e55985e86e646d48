"""What the parts of the storage study have measured, person by person, and intervals of it.

Intervals are 95%, over seeds drawn with replacement and the asked people drawn within each; all of a person's answers
are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headwater.launch.studies.resampling import over_seeds
from headwater.launch.studies.storage.data import Population
from headwater.launch.studies.storage.parts import StoragePart
from headwater.launch.studies.storage.settings import StorageSettings
from headwater.train.artifacts import read_json

METHODS = ("mixed", "full", "lora")
"""How a model comes to answer: questions from the start, fine-tuning of all weights, LoRA."""
RIGHT, SHUFFLED = "right", "shuffled"
Interval = list[float] | None
"""[value, low, high]."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers of one model. N: questions about asked people.

    Attributes:
        person_N, attribute_N: whom and what each is about.
        right_N: whether the answer was right, float64.
        shuffled_N: whether it was that of another person, float64; None of runs of earlier versions.
        taught: share of right answers about the people whose questions were trained on.
    """

    person_N: np.ndarray
    attribute_N: np.ndarray
    right_N: np.ndarray
    shuffled_N: np.ndarray | None
    taught: float

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Asked:
        shuffled = np.array(kept[SHUFFLED], dtype=np.float64) if SHUFFLED in kept else None
        right = np.array(kept[RIGHT], dtype=np.float64)
        return cls(np.array(kept["person"]), np.array(kept["attribute"]), right, shuffled, float(kept["taught"]))

    def values(self, what: str) -> np.ndarray | None:
        return self.right_N if what == RIGHT else self.shuffled_N


@dataclass(frozen=True, slots=True)
class Probed:
    """P-probes, or Q-probes, of one model. P: asked people, S: places, A: attributes.

    Attributes:
        right_PSA: share of a person's texts in which the probe was right, float64; of Q-probes there is one place.
        due_PA: the same at the place just before the attribute's own value; None of Q-probes.
        early_P: the same before the first value, over all attributes but the one that is due there; None of Q-probes.
        majority_A: what the commonest value is worth.
    """

    person_P: np.ndarray
    right_PSA: np.ndarray
    due_PA: np.ndarray | None
    early_P: np.ndarray | None
    majority_A: np.ndarray

    @classmethod
    def of_places(cls, kept: Mapping[str, Any]) -> Probed:
        right, due, early = (np.array(kept[name], dtype=np.float64) for name in (RIGHT, "due", "early"))
        return cls(np.array(kept["person"]), right, due, early, np.array(kept["majority"]))

    @classmethod
    def of_names(cls, kept: Mapping[str, Any]) -> Probed:
        right = np.array(list(kept[RIGHT].values()), dtype=np.float64)
        people = np.array([int(number) for number in kept[RIGHT]])
        return cls(people, right[:, None], None, None, np.array(kept["majority"]))


Answers = dict[int, Asked]
"""Of one way of writing and training, by seed."""


@dataclass
class Measured:
    """Everything that the parts have left.

    Attributes:
        answers: by variant and way: one of `METHODS`, `lora-NAME`, or the label of a stretch with questions.
        names, places: Q-probes and P-probes by variant and seed.
        untrained_names, untrained_places: the same of weights before any step.
        grid: P-probes by size, rank and variant, then by seed.
        told: how much of the values a size's models foresee: by size and variant.
    """

    settings: StorageSettings
    populations: dict[int, Population]
    answers: dict[tuple[str, str], Answers] = field(default_factory=dict)
    names: dict[str, dict[int, Probed]] = field(default_factory=dict)
    places: dict[str, dict[int, Probed]] = field(default_factory=dict)
    untrained_names: dict[str, dict[int, Probed]] = field(default_factory=dict)
    untrained_places: dict[str, dict[int, Probed]] = field(default_factory=dict)
    grid: dict[tuple[str, int, str], dict[int, Probed]] = field(default_factory=dict)
    told: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def interval(
        self,
        values: Sequence[np.ndarray],
        people: Sequence[np.ndarray],
        statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Interval:
        """Of each seed float64 [n] or [n, K], with the person of each row."""
        return over_seeds(values, people, statistic, resamples=self.settings.resamples)

    def accuracy(
        self,
        variant: str,
        way: str,
        what: str = RIGHT,
        among: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ) -> Interval:
        """Share of right answers.

        Args:
            among: of a seed and its questions' people, which of them count: bool [N].
        """
        found = self.answers.get((variant, way), {})
        values, people = [], []
        for seed, each in sorted(found.items()):
            right = each.values(what)
            if right is None:
                return None
            kept = among(seed, each.person_N) if among else np.ones(len(right), dtype=bool)
            values.append(right[kept])
            people.append(each.person_N[kept])
        return self.interval(values, people) if values else None

    def stacked(
        self, columns: Sequence[tuple[str, str]], what: str = RIGHT
    ) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
        """Answers to the same questions of several (variant, way), of each seed that has them all: float64 [N, K], and
        the person of each question; None where no seed has, or what is asked for was not measured."""
        rows = [self.answers.get(each, {}) for each in columns]
        shared = sorted(set.intersection(*(set(each) for each in rows)))
        values, people = [], []
        for seed in shared:
            found = [each[seed].values(what) for each in rows]
            known = [each for each in found if each is not None]
            if len(known) < len(found):
                return None
            values.append(np.stack(known, axis=1))
            people.append(rows[0][seed].person_N)
        return (values, people) if shared else None

    def difference(
        self,
        one: tuple[str, str],
        other: tuple[str, str],
        what: str = RIGHT,
        among: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ) -> Interval:
        """Right answers of one (variant, way) less those of another, about the same people."""
        shared = sorted(set(self.answers.get(one, {})) & set(self.answers.get(other, {})))
        found = self.stacked((one, other), what)
        if found is None:
            return None
        values, people = [], []
        for seed, pair, owner in zip(shared, *found, strict=True):
            kept = among(seed, owner) if among else np.ones(len(owner), dtype=bool)
            values.append((pair[:, 0] - pair[:, 1])[kept])
            people.append(owner[kept])
        return self.interval(values, people)


def gather(settings: StorageSettings, parts: Sequence[StoragePart]) -> Measured:
    """Reads what every finished task has left."""
    found = Measured(settings, {seed: Population(settings.population, seed) for seed in settings.seeds})
    for part in parts:
        for task in part.tasks:
            if part.result(task).exists():
                _take(found, part, task, read_json(part.result(task)))
    return found


def _take(found: Measured, part: StoragePart, task: str, kept: dict[str, Any]) -> None:
    variant, seed = part.variant, part.seed
    if task.startswith("places-"):
        rank = int(task.removeprefix("places-"))
        found.grid.setdefault((part.point, rank, variant), {})[seed] = Probed.of_places(kept)
    elif task == "told" and part.point:
        values = [kept[half]["values"] for half in ("taught", "asked")]
        found.told.setdefault((part.point, variant), []).append(float(np.mean(values)))
    elif task in ("asked", "full") or task.startswith("lora"):
        way = (part.window or "mixed") if task == "asked" else task
        found.answers.setdefault((variant, way), {})[seed] = Asked.read(kept)
    elif task == "q_probe":
        found.names.setdefault(variant, {})[seed] = Probed.of_names(kept)
    elif task == "places":
        found.places.setdefault(variant, {})[seed] = Probed.of_places(kept)
    elif task == "untrained":
        found.untrained_names.setdefault(variant, {})[seed] = Probed.of_names(kept["q_probe"])
        found.untrained_places.setdefault(variant, {})[seed] = Probed.of_places(kept["places"])
