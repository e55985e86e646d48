"""The parts of the study of acquisition: base models, and trainings that go on from their checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.launch.parts.part import Part
from headwater.train.artifacts import RunDir, write_json

TASK = "task.json"
"""Says, in a part's directory, what it is; for its process."""


@dataclass(frozen=True, kw_only=True)
class StudyPart(Part):
    """A part of one seed."""

    module = "headwater.launch.studies.acquisition.process"

    seed: int

    def prepare(self, study: Path) -> None:
        """Writes down what the part is; `study` is the study's resolved configuration."""
        write_json(self.path / TASK, {"study": str(study), "name": self.name})


@dataclass(frozen=True, kw_only=True)
class BasePart(StudyPart):
    """The pretraining of a seed's base model.

    Attributes:
        stages: steps whose checkpoints the others go on from.
    """

    stages: tuple[int, ...]

    def missing(self) -> list[Path]:
        """Checkpoints that are not there yet."""
        places = [RunDir(self.path).checkpoint(stage) for stage in self.stages]
        return [place for place in places if not (place / "checkpoint.json").exists()]

    def is_done(self) -> bool:
        return not self.missing()


@dataclass(frozen=True, kw_only=True)
class ContinuedPart(StudyPart):
    """One training that goes on from a base model.

    Attributes:
        base: the base model's run directory.
        stage: updates of the base model from which it goes on.
        copies: how often a passage stands in a batch that shows it.
    """

    base: Path
    stage: int
    batch: int
    copies: int

    @property
    def label(self) -> str:
        share = f", {self.copies} copies" if self.copies > 1 else ""
        return f"stage {self.stage}, batch {self.batch}{share}"

    def is_done(self) -> bool:
        return (self.path / "done.json").exists()
