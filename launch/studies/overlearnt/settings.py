"""Settings of the study of overlearnt facts, its names for the methods, and where its models are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headwater.attribution.settings import EvaluateSettings, IndexSettings, TracedModelSettings
from headwater.configs import Problem, load_config, section, setting
from headwater.train.artifacts import RunDir
from headwater.train.settings import PretrainSettings

METHODS = {
    "last_cross_entropy": "Last checkpoint, cross entropy",
    "last_log_odds": "Last checkpoint, log-odds",
    "checkpoints": "Sum over checkpoints",
    "captured": "Captured mean row",
    "captured_log_odds": "Captured + log-odds",
}
"""The ways of tracing, in the order of the table."""

LABELS = {**METHODS, "bm25": "BM25", "random": "Random", "gold": "Gold passages"}
ARMS = ("gold", "bm25", "last_cross_entropy", "last_log_odds", "captured", "random")


@dataclass(kw_only=True, slots=True)
class LeaveOutSettings:
    """Training again without the passages that a method names."""

    facts: int = setting(30, "Facts whose passages are left out, drawn by the seed.", minimum=1)
    known: float = setting(0.5, "Least probability of the target for a fact to be drawn.", minimum=0, maximum=1)
    top: int = setting(10, "Passages that a method names for each fact.", minimum=1)
    arms: list[str] = setting(list(ARMS), "What is left out, each in a training of its own.", choices=tuple(LABELS))

    def problems(self) -> Iterator[Problem]:
        if len(set(self.arms)) != len(self.arms):
            yield Problem("arms", self.arms, "each once")


@dataclass(kw_only=True, slots=True)
class OverlearntSettings:
    """The study of overlearnt facts: a long pretraining, ways of tracing it, and trainings without what they find."""

    out: str = setting("runs/study/overlearnt", "Where the runs and the report go.")
    preset: str = setting("pretrain/demo", "The pretraining configuration.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    precision: str = setting("bf16", "Number format of training's forward pass.", choices=("fp32", "bf16"))
    seeds: list[int] = setting([0, 1], "Models, each with its own people, order and weights.", minimum=0)
    checkpoints: int = setting(6, "Saved checkpoints, evenly over the run.", minimum=1)
    captured_dims: int = setting(0, "Projected dimensions per side of captured rows; 0: the index's.", minimum=0)
    index: IndexSettings = section(IndexSettings, model=TracedModelSettings(run="-"))
    evaluate: EvaluateSettings = section(EvaluateSettings)
    leave_out: LeaveOutSettings = section(LeaveOutSettings)
    parallel: int = setting(2, "Parts that run at once, each on its share of the cores.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            yield Problem("seeds", self.seeds, "at least one seed, and each once")


def pretraining(settings: OverlearntSettings, seed: int, path: Path) -> tuple[list[str], PretrainSettings]:
    """The overrides and settings that the model of a seed and its trainings again have in common."""
    given = [*settings.pretrain, f"train.precision={settings.precision}"]
    overrides = [*given, f"seed={seed}", f"corpus.seed={seed}", f"out={path}"]
    return overrides, load_config(PretrainSettings, settings.preset, overrides)


def saved_steps(settings: OverlearntSettings, steps: int) -> list[int]:
    """The steps of the saved checkpoints, the last one the training's last."""
    return sorted({max(1, steps * n // settings.checkpoints) for n in range(1, settings.checkpoints + 1)})


def model_run(settings: OverlearntSettings, seed: int) -> RunDir:
    return RunDir(Path(settings.out) / f"seed-{seed}" / "model")
