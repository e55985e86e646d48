"""A window of steps under torch.profiler; the trace, RUN/profile/step-NNNNNNNN-rank-R.json, opens in Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from headwater.train.artifacts import atomic_path
from headwater.train.callbacks.base import Callback, Training
from headwater.train.engine import StepResult
from headwater.train.settings import ProfileSettings
from headwater.train.stream.stream import TrainingSequence


class Profiler(Callback):
    """Records the steps of the window from the first callback before the first to the end of the last update."""

    name = "profiler"
    priority = -100

    def __init__(self, directory: Path, settings: ProfileSettings) -> None:
        self.directory, self.ranks = directory, settings.ranks
        self.first, self.last = settings.steps
        self._profile: Any = None
        self._begun = 0

    def before_step(self, trainer: Training, step: int, sequences: list[TrainingSequence]) -> None:
        if self._profile is None and self.first <= step <= self.last and trainer.world.rank in self.ranks:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile, self._begun = profile(activities=activities, record_shapes=True), step
            self._profile.start()

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        if step >= self.last:
            self._write(trainer)

    def end(self, trainer: Training, step: int) -> None:
        self._write(trainer)

    def _write(self, trainer: Training) -> None:
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        recorded.stop()
        with atomic_path(self.directory / f"step-{self._begun:08d}-rank-{trainer.world.rank}.json") as part:
            recorded.export_chrome_trace(str(part))

    def close(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
