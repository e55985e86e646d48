"""The parts of the study of overlearnt facts: models, and trainings again without some passages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.launch.parts.training import TrainingPart


@dataclass(frozen=True, kw_only=True)
class OverlearntPart(TrainingPart):
    """One training of the study. Its factors: `part` (model or retraining), `seed`, and of a retraining `arm` and
    `model`."""

    module = "headwater.launch.studies.overlearnt.process"

    @property
    def home(self) -> Path:
        return self.path.parent

    def is_done(self) -> bool:
        if self.factors["part"] == "model":
            return (self.path / "leave_out" / "facts.json").exists()
        return super().is_done()
