"""The parts of the study of acquisition: base models, and trainings that go on from their checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.launch.parts.part import Part
from headwater.launch.studies.acquisition.settings import SIZE
from headwater.train.artifacts import RunDir, write_json

TASK = "task.json"
"""Says, in a part's directory, what it is; for its process."""

SCENARIOS, SPACING, COPIES, REWORDED, REAL = "scenarios", "spacing", "copies", "reworded", "real"
"""What a training shows: the paper's scenarios; facts at several intervals; facts of several popularities, in the same
words each time or in others; and the scenarios to a real model."""


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
        size: its name.
    """

    stages: tuple[int, ...]
    size: str = SIZE

    def missing(self) -> list[Path]:
        """Checkpoints that are not there yet."""
        places = [RunDir(self.path).checkpoint(stage) for stage in self.stages]
        return [place for place in places if not (place / "checkpoint.json").exists()]

    def is_done(self) -> bool:
        return not self.missing()


@dataclass(frozen=True, kw_only=True)
class StartPart(StudyPart):
    """The corpus of a seed in the real model's own tokens; what trains on it begins with that model's weights."""

    def is_done(self) -> bool:
        return RunDir(self.path).config.exists()


@dataclass(frozen=True, kw_only=True)
class ContinuedPart(StudyPart):
    """One training that goes on from a base model.

    Attributes:
        base: the base model's run directory.
        stage: updates of the base model from which it goes on; 0 of a real model.
        copies: how often a passage stands in a batch that shows it.
        plan: what it shows.
        size: of the base model.
    """

    base: Path
    stage: int
    batch: int
    copies: int = 1
    plan: str = SCENARIOS
    size: str = SIZE

    @property
    def label(self) -> str:
        if self.plan == REAL:
            return "real model"
        named = [f"stage {self.stage}", f"batch {self.batch}"]
        named += [f"{self.copies} copies"] if self.copies > 1 else []
        named += [f"size {self.size}"] if self.size != SIZE else []
        return ", ".join([*named, *([self.plan] if self.plan != SCENARIOS else [])])

    def is_done(self) -> bool:
        return (self.path / "done.json").exists()
