"""The parts of the study of a real pretrained model: its weights, trainings, and their tracing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from headwater.launch.parts.part import Part
from headwater.launch.parts.settings import keep_settings
from headwater.launch.parts.training import TrainingPart
from headwater.launch.studies.pretrained.settings import PretrainedSettings, start_path
from headwater.train.artifacts import fingerprint, write_json

MODULE = "headwater.launch.studies.pretrained.process"


@dataclass(frozen=True, kw_only=True)
class StartPart(Part):
    """The weights that everything begins with, as a checkpoint.

    Attributes:
        model: a Llama directory of Hugging Face, or a .gguf file.
    """

    module = MODULE

    model: str

    def is_done(self) -> bool:
        return start_path(self.path.parent).exists()

    def prepare(self) -> None:
        """Writes down, for its process, what is imported."""
        write_json(self.path / "part.json", {"factors": {"part": "start", "model": self.model}})


@dataclass(frozen=True, kw_only=True)
class PretrainedPart(TrainingPart):
    """One training. Its factors: `part` (model or retraining), `seed`, and of a retraining `arm`."""

    module = MODULE

    @property
    def home(self) -> Path:
        return self.path.parent.parent  # the weights that it begins with lie there too


@dataclass(frozen=True, kw_only=True)
class TracedPart(Part):
    """The tracing of a model as it was after a step."""

    module = MODULE

    settings: PretrainedSettings
    seed: int
    step: int

    def is_done(self) -> bool:
        return (self.path / "table.json").exists()

    def prepare(self) -> None:
        """Writes down what is traced, for its process, or refuses a directory that was made otherwise."""
        kept = {name: asdict(getattr(self.settings, name)) for name in ("index", "evaluate", "leave_out")}
        factors = {"part": "traced", "seed": self.seed, "step": self.step}
        keep_settings(
            self.path / "part.json",
            kept,
            home=self.path.parent.parent,
            mark=fingerprint(kept),
            what=f"{self.path} holds a tracing of other settings",
            fix="choose another out=, or remove it",
            note={"factors": factors},
        )
