"""The parts of the study of tracing: a seed's corpus, trainings, tracings, and the recipe taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from headwater.launch.parts.part import Part
from headwater.launch.parts.settings import keep_settings
from headwater.launch.parts.training import TrainingPart
from headwater.launch.studies.leave_out import lists_of
from headwater.launch.studies.tracing.settings import UNSEEN, TracingSettings
from headwater.train.artifacts import RunDir, fingerprint

MODULE = "headwater.launch.studies.tracing.process"
DONE = "done.json"


@dataclass(frozen=True, kw_only=True)
class CorpusPart(TrainingPart):
    """The corpus of a seed, with what is asked and what is not shown."""

    module = MODULE

    def is_done(self) -> bool:
        return (self.path / UNSEEN).exists()


@dataclass(frozen=True, kw_only=True)
class ModelPart(TrainingPart):
    """One training. Its factors: `part` (model or retraining), `seed`, `size`, of a model how many `facts` are left
    out, of a retraining the `arm`."""

    module = MODULE

    @property
    def home(self) -> Path:
        return self.path.parent.parent

    def is_done(self) -> bool:
        named = not self.factors.get("facts") or (lists_of(RunDir(self.path)) / "facts.json").exists()
        return named and super().is_done()


@dataclass(frozen=True, kw_only=True)
class TracedPart(Part):
    """A tracing, of a model as it was after a step or of the real model's run by the recipe's rows.

    Attributes:
        factors: `part` (traced or recipe), and of a traced one `seed`, `size` and `step`.
        kept: names of the settings that it depends on.
    """

    module = MODULE

    settings: TracingSettings
    factors: Mapping[str, object]
    kept: tuple[str, ...]

    def is_done(self) -> bool:
        return (self.path / DONE).exists()

    def prepare(self) -> None:
        """Writes down what is traced, for its process, or refuses a directory that was made otherwise."""
        kept = {name: asdict(getattr(self.settings, name)) for name in self.kept}
        keep_settings(
            self.path / "part.json",
            kept,
            home=Path(self.settings.out),
            mark=fingerprint(kept),
            what=f"{self.path} holds a tracing of other settings",
            fix="choose another out=, or remove it",
            note={"factors": dict(self.factors)},
        )
