"""The parts of the study of overlearnt facts: models, and trainings again without some passages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from headwater.launch.parts.part import Part
from headwater.launch.parts.settings import keep_settings
from headwater.launch.parts.training import is_trained
from headwater.train.artifacts import fingerprint
from headwater.train.settings import PretrainSettings


@dataclass(frozen=True, kw_only=True)
class TrainingPart(Part):
    """One training of the study.

    Attributes:
        factors: `part` (model or retraining), `seed`, and of a retraining `arm` and `model`.
        preset, overrides: its configuration, as `headwater pretrain` takes it.
        settings: the same, resolved.
    """

    module = "headwater.launch.studies.overlearnt.process"

    factors: dict[str, Any]
    preset: str
    overrides: list[str]
    settings: PretrainSettings

    def is_done(self) -> bool:
        if self.factors["part"] == "model":
            return (self.path / "leave_out" / "facts.json").exists()
        return is_trained(self.path, self.settings)

    def prepare(self) -> None:
        """Writes down what the part is, for its process, or refuses a directory that holds another one."""
        settings = asdict(self.settings)
        keep_settings(
            self.path / "cell.json",
            {"pretraining": settings},
            home=self.path.parent,
            mark=fingerprint({"kind": "pretrain", "settings": settings, "pretraining": settings}),
            what=f"{self.path} holds a cell of other settings",
            fix="choose another out=, or remove it",
            note={"factors": self.factors, "preset": self.preset, "overrides": self.overrides},
        )
