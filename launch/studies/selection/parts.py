"""The parts of the study of data selection: the whole corpus's model, and the models of what was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.launch.parts.training import TrainingPart
from headwater.launch.studies.lds.outputs import OUTPUTS
from headwater.launch.studies.selection.settings import ARMS, WHOLE, excluded_file


@dataclass(frozen=True, kw_only=True)
class SelectionPart(TrainingPart):
    """A training, and what its model says to the questions. Its factors: `arm` (`whole` or one of ARMS) and `seed`."""

    module = "headwater.launch.studies.selection.process"

    @property
    def home(self) -> Path:
        return self.path.parent

    def is_done(self) -> bool:
        made = [self.path / OUTPUTS]
        if self.factors["arm"] == WHOLE:
            made += [excluded_file(self.path.parent, arm) for arm in ARMS]
        return all(path.exists() for path in made) and super().is_done()
