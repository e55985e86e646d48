"""The parts of the study of exposures: the training that sees everything, and those that drop some of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.launch.parts.training import TrainingPart
from headwater.launch.studies.exposures.settings import predictions_file
from headwater.launch.studies.lds.outputs import OUTPUTS


@dataclass(frozen=True, kw_only=True)
class ExposuresPart(TrainingPart):
    """One training, and what its model says to every question. Its factors: `name` (model, or as in cells.json) and
    `seed`."""

    module = "headwater.launch.studies.exposures.process"

    @property
    def home(self) -> Path:
        return self.path.parent

    def is_done(self) -> bool:
        made = predictions_file(self.path.parent) if self.factors["name"] == "model" else self.path / "difference.json"
        return made.exists() and (self.path / OUTPUTS).exists() and super().is_done()
