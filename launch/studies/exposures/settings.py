"""Settings of the study of exposures, and where its files are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headwater.configs import Problem, setting
from headwater.train.artifacts import RunDir

PREDICTORS = {
    "visits": "Captured visits, question at the end",
    "visits_then": "Captured visits, question at the next checkpoint",
    "visits_inner": "Captured visits, inner products",
    "gradient": "Captured visits, no curvature",
    "recency": "Steps since the last exposure",
    "lr": "Sum of the learning rate",
    "count": "Number of exposures",
    "random": "Random",
}
"""What foretells an effect: ours, then the trivial ones."""
OURS = ("visits", "visits_then", "visits_inner", "gradient")
TRIVIAL = ("recency", "lr", "count", "random")


@dataclass(kw_only=True, slots=True)
class ExposuresSettings:
    """Models without the exposures of some facts in some windows of steps, and what foretells the difference."""

    out: str = setting("runs/study/exposures", "Where the runs and the report go.")
    preset: str = setting("study/lds-base", "The pretraining configuration.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    seeds: list[int] = setting([0], "Of people, order, weights, and of which fact of a person is dropped.", minimum=0)
    windows: int = setting(4, "Parts of equal length that the steps are cut into.", minimum=1)
    together: int = setting(1, "Facts, of different people, whose exposures in a window a training drops.", minimum=1)
    alone: int = setting(
        0,
        "Where several are dropped together: of these, so many are dropped again in a training of their own.",
        minimum=0,
    )
    proj: int = setting(32, "Projected dimensions per side of the captured visits.", minimum=1)
    checkpoints: int = setting(8, "Saved checkpoints, evenly over the run; a multiple of windows.", minimum=1)
    parallel: int = setting(2, "Trainings that run at once, each on its share of the cores.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            yield Problem("seeds", self.seeds, "at least one seed, and each once")
        if self.checkpoints % self.windows:
            yield Problem("checkpoints", self.checkpoints, f"a multiple of windows = {self.windows}")


def training_overrides(settings: ExposuresSettings, seed: int, path: Path, further: list[str]) -> list[str]:
    """What a training of the study changes in the preset."""
    return [*settings.pretrain, f"seed={seed}", f"corpus.seed={seed}", f"out={path}", *further]


def seed_path(settings: ExposuresSettings, seed: int) -> Path:
    return Path(settings.out) / f"seed-{seed}"


def model_run(seed: Path) -> RunDir:
    """The training that sees everything."""
    return RunDir(seed / "model")


def cells_file(seed: Path) -> Path:
    """Which fact's exposures, in which window, each training drops: study.cells."""
    return seed / "cells.json"


def predictions_file(seed: Path) -> Path:
    """What each predictor foretells of each cell."""
    return seed / "foretold.json"


def dropped_run(seed: Path, name: str) -> RunDir:
    """The training that drops what its name stands for in cells.json."""
    return RunDir(seed / f"dropped-{name}")


def window_steps(number: int, windows: int, steps: int) -> tuple[int, int]:
    """First and last step (from 1) of a window."""
    return number * steps // windows + 1, (number + 1) * steps // windows
