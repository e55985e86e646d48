"""Settings of the study of half-corpora, and where its files are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headwater.attribution.settings import IndexSettings, task_weight_problems, task_weight_setting
from headwater.configs import ConfigError, Problem, load_config, section, setting
from headwater.train.artifacts import RunDir

BASELINES = ("gold", "bm25", "ngram", "random")
"""Scored beside the methods, whatever these are."""
CURVATURES = ("task", "train", "none", "trak")
BEST = "best"
"""The set that is the first method's single best passage."""


@dataclass(kw_only=True, slots=True)
class QuerySettings:
    """What is asked besides the planted facts."""

    cloze: int = setting(60, "Values in the corpus's own passages, each asked with the words before it.", minimum=0)
    held_out: int = setting(60, "Passages of the same documents that no model is trained on.", minimum=0)


@dataclass(kw_only=True, slots=True)
class MethodSettings:
    """An index of the whole corpus's model, and how its rows are scored.

    The task, whose curvature the scores may be made with, is the queries of one kind.
    """

    name: str = setting("", "What it is called.")
    index: list[str] = setting([], "key=value overrides of the index's settings; methods with the same share an index.")
    captured: bool = setting(False, "The rows that the model's training has captured, instead of an index.")
    also: list[str] = setting([], "Further methods, whose indexes' scores are added.")
    weights: list[float] = setting([], "Weights of its own index and the further ones; empty: all 1.")
    curvature: str = setting(
        "task", "Curvature of the scores; trak: that of whole rows, of an index without any.", choices=CURVATURES
    )
    task_weight: float | str = task_weight_setting()
    normalize: bool = setting(True, "Unit norm of query and passage (cosine).")

    def problems(self) -> Iterator[Problem]:
        if not self.name or "/" in self.name or self.name in (*BASELINES, BEST):
            yield Problem("name", self.name, f"the name of a file, and none of {', '.join((*BASELINES, BEST))}")
        if self.weights and len(self.weights) != 1 + len(self.also):
            yield Problem("weights", self.weights, f"one per index ({1 + len(self.also)})")
        if self.curvature == "trak" and (self.captured or self.also):
            yield Problem("curvature", "trak", "an index of its own, alone")
        if self.captured and self.index:
            yield Problem("index", self.index, "empty, since captured rows are as the training has taken them")
        if not self.captured:
            try:
                load_config(IndexSettings, None, ["model.run=-", *self.index])
            except ConfigError as error:
                yield from (Problem(f"index: {p.key}", p.value, p.expected, p.fix) for p in error.problems)
        yield from task_weight_problems(self.task_weight)


@dataclass(kw_only=True, slots=True)
class LeftOutSettings:
    """Small sets of passages, each left out of a training of its own."""

    queries: int = setting(0, "Queries that sets are left out for, of planted facts and stated values.", minimum=0)
    top: int = setting(10, "Passages of a method's set.", minimum=1)
    methods: list[str] = setting(
        ["bm25"],
        "Whose best passages are left out, beside the golds, random ones, and the single best of the first method.",
    )


@dataclass(kw_only=True, slots=True)
class LdsSettings:
    """Models of halves of a corpus, and methods that say what leaving the other half out does."""

    out: str = setting("runs/study/lds", "Where the runs and the report go.")
    preset: str = setting("study/lds-base", "The pretraining configuration.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    traced: list[str] = setting([], "Further overrides of the whole corpus's model: checkpoints, capture.")
    seed: int = setting(0, "Seed of people, corpus, order, weights, halves and queries.", minimum=0)
    models: int = setting(64, "Halves of the corpus, each with a model that is trained on it.", minimum=3)
    again: int = setting(24, "Of these halves, so many are trained again from other weights.", minimum=0)
    queries: QuerySettings = section(QuerySettings)
    left_out: LeftOutSettings = section(LeftOutSettings)
    methods: list[MethodSettings] = setting([], "What is held against the halves.")
    parallel: int = setting(2, "Parts that run at once, each on its share of the cores.", minimum=1)
    scores: str = setting(
        "", "Adds a line to a finished study: scores by somebody else, a .npy of queries x passages, higher is better."
    )
    name: str = setting("", "What that line is called; the file's name if not given.")

    def problems(self) -> Iterator[Problem]:
        if self.again > self.models or 0 < self.again < 3:
            yield Problem("again", self.again, f"0, or from 3 to models = {self.models}")
        names = [method.name for method in self.methods]
        if len(set(names)) != len(names):
            yield Problem("methods", names, "each name once")
        unknown = sorted(set(self.left_out.methods) - {*names, "bm25"})
        if unknown and self.left_out.queries:
            yield Problem("left_out.methods", unknown, "bm25, and names of methods")
        if self.left_out.queries and not names:
            yield Problem("left_out.queries", self.left_out.queries, "0, where there is no method")
        for method in self.methods:
            if not set(method.also) <= set(names) - {method.name}:
                yield Problem(f"methods: {method.name}: also", method.also, "names of other methods")


def training_overrides(settings: LdsSettings, path: Path, further: list[str]) -> list[str]:
    """What a training of the study changes in the preset."""
    seeds = [f"seed={settings.seed}", f"corpus.seed={settings.seed}"]
    return [*settings.pretrain, *seeds, f"out={path}", *further]


def model_run(out: Path) -> RunDir:
    """The model of the whole corpus."""
    return RunDir(out / "model")


def half_path(out: Path, number: int, again: bool = False) -> Path:
    """The run directory of a half's model."""
    return out / ("again" if again else "halves") / f"{number:03d}"


def left_path(out: Path, name: str, top: int, slot: int) -> Path:
    """The run directory of a model that lacks a small set of passages."""
    return out / "left" / (name if name in ("gold", BEST) else f"{name}, {top}") / f"{slot:03d}"


def left_sets(settings: LdsSettings) -> list[str]:
    """The sets that are left out for each query; none without queries."""
    return ["gold", "random", BEST, *dict.fromkeys(settings.left_out.methods)] if settings.left_out.queries else []


def queries_file(out: Path) -> Path:
    return out / "queries.jsonl"


def scores_file(out: Path, method: str) -> Path:
    """A method's scores: float32 [queries, passages]."""
    return out / "methods" / method / "scores.npy"


def index_names(methods: list[MethodSettings]) -> dict[str, str]:
    """The index of each method under the model's run: of methods with the same overrides, the first one's."""
    names: dict[str, str] = {}
    for method in methods:
        same = (names[other.name] for other in methods if other.name in names and other.index == method.index)
        names[method.name] = "captured" if method.captured else next((n for n in same if n != "captured"), method.name)
    return names
