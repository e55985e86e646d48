"""Settings of the study of tracing, its names for the methods, and where its files are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headwater.attribution.settings import (
    TRACKSTAR,
    IndexSettings,
    TailPatchSettings,
    TracedModelSettings,
    task_weight_problems,
    task_weight_setting,
)
from headwater.configs import ConfigError, Problem, load_config, section, setting
from headwater.launch.studies.sizes import SizeSettings
from headwater.train.artifacts import RunDir
from headwater.train.settings import PretrainSettings

METHODS = {"trackstar": "TrackStar", "headwater": "Headwater", "bm25": "BM25", "random": "Random"}
"""The ways of tracing, in the order of the tables."""
TRACED = ("trackstar", "headwater")
"""Those that read gradients."""
LABELS = {**METHODS, "gold": "Gold passages"}
SHARED_ARMS = ("gold", "random")
"""What a single training leaves out for all amounts of tokens, since it does not depend on the model."""

ASKED_ANOTHER = "bm25-asked-another"
"""BM25 asked another question than the one whose gold it is held against: a control."""

QUESTIONS, ANSWERS, UNSEEN = "questions.jsonl", "questions.parquet", "unseen.txt"
CALLBACK = "headwater.launch.studies.tracing.questions:from_settings"


@dataclass(kw_only=True, slots=True)
class LeaveOutSettings:
    """Training again without the passages that a method names for a few facts."""

    facts: int = setting(0, "Facts whose passages are left out, drawn by the seed; 0: not run.", minimum=0)
    top: int = setting(6, "Passages that a method names for each fact.", minimum=1)
    methods: list[str] = setting(
        ["trackstar"], "Whose passages are left out, beside the gold ones and random ones.", choices=TRACED
    )

    def problems(self) -> Iterator[Problem]:
        if len(set(self.methods)) != len(self.methods):
            yield Problem("methods", self.methods, "each once")


@dataclass(kw_only=True, slots=True)
class MeasureSettings:
    """How passages are scored, and what a step on them does."""

    task_weight: float | str = task_weight_setting()
    tail_patch: TailPatchSettings = section(TailPatchSettings)

    def problems(self) -> Iterator[Problem]:
        yield from task_weight_problems(self.task_weight)


@dataclass(kw_only=True, slots=True)
class RecipeSettings:
    """The paper's recipe taken apart on a real pretrained model's run."""

    run: str = setting("", "A run of `headwater study pretrained` (OUT/seed-0/model); empty: this part is not run.")
    step: int = setting(0, "Its checkpoint; 0: the newest.", minimum=0)
    dims: int = setting(32, "Dimensions a side of the full recipe.", minimum=2)
    fewer: int = setting(16, "Those of the row with fewer.", minimum=1)
    task_weight: float = setting(0.75, "lambda of the full recipe.", above=0, below=1)
    weights: list[float] = setting([0.25, 0.9, 0.99], "Other lambdas, a row each.")
    batch_tokens: int = setting(1024, "Tokens of an index's batch.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if self.fewer >= self.dims:
            yield Problem("fewer", self.fewer, f"less than dims = {self.dims}")
        if any(not 0 < each < 1 for each in self.weights) or len(set(self.weights)) != len(self.weights):
            yield Problem("weights", self.weights, "numbers between 0 and 1, each once")
        if self.task_weight in self.weights:
            yield Problem("weights", self.weights, f"others than task_weight = {self.task_weight}")


@dataclass(kw_only=True, slots=True)
class TracingSettings:
    """Models of several sizes are traced after several amounts of tokens, and what is found is sorted."""

    out: str = setting("runs/study/tracing", "Where the runs and the report go.")
    preset: str = setting("study/tracing-base", "The pretraining configuration.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    sizes: list[SizeSettings] = setting([], "Models, from small to large: the last is the one looked at closely.")
    amounts: list[int] = setting([150, 300, 600], "Steps after which the models are traced, rising.", minimum=1)
    untrained: bool = setting(True, "Trace the weights before the first step too, as a control.")
    seeds: list[int] = setting([0, 1], "Of people, passages, order and weights.", minimum=0)
    unseen: int = setting(
        8,
        "Subjects whose passages are indexed but never trained on, as a control: their facts are not known.",
        minimum=0,
    )
    questions: str = setting(
        "",
        "Instead of the planted people's: a JSONL file with prompt, target, subject, relation and gold (ids of "
        "passages or documents, or texts) about the corpus of `pretrain`.",
    )
    index: IndexSettings = section(IndexSettings, "Headwater's own.", model=TracedModelSettings(run="-"))
    trackstar: IndexSettings = section(
        IndexSettings, "The paper's recipe.", model=TracedModelSettings(run="-"), **TRACKSTAR
    )
    evaluate: MeasureSettings = section(MeasureSettings)
    leave_out: LeaveOutSettings = section(LeaveOutSettings)
    recipe: RecipeSettings = section(RecipeSettings)
    parallel: int = setting(2, "Parts that run at once, each on its share of the cores.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            yield Problem("seeds", self.seeds, "at least one seed, and each once")
        names = [size.name for size in self.sizes]
        if not names or len(set(names)) != len(names) or not all(name.replace("-", "").isalnum() for name in names):
            yield Problem("sizes", names, "at least one, each with a name of its own, of letters and figures")
        if not self.amounts or self.amounts != sorted(set(self.amounts)):
            yield Problem("amounts", self.amounts, "at least one step, rising")
        auto = [
            f"{name}.model.precision"
            for name in ("index", "trackstar")
            if getattr(self, name).model.precision == "auto"
        ]
        if auto:
            # What is faster on the day would decide what is compared, and parts are made at different times.
            yield Problem(", ".join(auto), "auto", "a precision by name: all points are compared with each other")


def trained_at(settings: TracingSettings) -> list[int]:
    """The steps at which a model is saved, asked and traced."""
    return [0] * settings.untrained + list(settings.amounts)


def corpus_run(settings: TracingSettings, seed: int) -> RunDir:
    """What the models of a seed have in common: corpus, tokenizer, questions, and what none of them is shown."""
    return RunDir(Path(settings.out) / f"seed-{seed}" / "corpus")


def model_run(settings: TracingSettings, seed: int, size: str) -> RunDir:
    return RunDir(Path(settings.out) / f"seed-{seed}" / size)


def traced_path(settings: TracingSettings, seed: int, size: str, step: int) -> Path:
    """What the tracing of a model after a step has left: rankings, classes, tail-patch."""
    return Path(settings.out) / f"seed-{seed}" / f"{size}-traced-{step}"


def without_run(settings: TracingSettings, seed: int, size: str, arm: str) -> RunDir:
    """The training without what an arm names."""
    return RunDir(Path(settings.out) / f"seed-{seed}" / f"{size}-without-{arm}")


def recipe_path(settings: TracingSettings) -> Path:
    """Where the paper's recipe is taken apart."""
    return Path(settings.out) / "recipe"


def arms_at(settings: TracingSettings, step: int) -> dict[str, str]:
    """What is left out and compared after a step, and the name of its training."""
    methods = {method: f"{method}-{step}" for method in settings.leave_out.methods}
    return {**{arm: arm for arm in SHARED_ARMS}, **methods} if settings.leave_out.facts else {}


def training_overrides(
    settings: TracingSettings, seed: int, size: SizeSettings, path: Path, further: list[str]
) -> list[str]:
    """What a training changes in the preset."""
    steps = [f"train.steps={settings.amounts[-1]}", f"callbacks.extra=[{CALLBACK}]"]
    seeds = [f"seed={seed}", f"corpus.seed={seed}", f"out={path}"]
    return [*settings.pretrain, *size.pretrain, *steps, *seeds, *further]


def check_trainings(settings: TracingSettings) -> None:
    """Looks at every size's configuration and the questions, and reports what is wrong with any of them together.

    Raises:
        ConfigError: with the problems of all sizes.
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    if settings.questions and not Path(settings.questions).is_file():
        problems.append(Problem("questions", settings.questions, "a JSONL file", "name one that is there"))
    for size in settings.sizes:
        try:
            given = training_overrides(settings, settings.seeds[0], size, Path(settings.out), [])
            plain = load_config(PretrainSettings, settings.preset, given)
        except ConfigError as error:
            problems += [each for each in error.problems if str(each) not in seen]
            seen |= {str(each) for each in error.problems}
            continue
        if not settings.questions and plain.facts.people <= settings.unseen and "people" not in seen:
            seen.add("people")
            expected = f"more than unseen = {settings.unseen}: the study asks for what was shown"
            problems.append(Problem("facts.people", plain.facts.people, expected))
    if problems:
        raise ConfigError(problems, "the study")
