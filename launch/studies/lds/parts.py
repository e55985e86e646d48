"""The parts of the study of half-corpora: the whole corpus's model, the halves', and the scores of each method."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from headwater.launch.parts.part import Part
from headwater.launch.parts.settings import keep_settings
from headwater.launch.parts.training import is_trained
from headwater.launch.studies.lds.outputs import OUTPUTS
from headwater.launch.studies.lds.settings import MethodSettings
from headwater.train.artifacts import fingerprint
from headwater.train.settings import PretrainSettings


@dataclass(frozen=True, kw_only=True)
class TrainingPart(Part):
    """A training, and what its model says to the queries.

    Attributes:
        factors: `part` (model, half or again), and of a half its `number`.
        preset, overrides: its configuration, as `headwater pretrain` takes it.
        settings: the same, resolved.
    """

    module = "headwater.launch.studies.lds.process"

    factors: dict[str, Any]
    preset: str
    overrides: list[str]
    settings: PretrainSettings

    def is_done(self) -> bool:
        return (self.path / OUTPUTS).exists() and is_trained(self.path, self.settings)

    def prepare(self) -> None:
        """Writes down what the part is, for its process, or refuses a directory that holds another one."""
        settings = asdict(self.settings)
        keep_settings(
            self.path / "part.json",
            settings,
            home=self.path,
            mark=fingerprint(settings),
            what=f"{self.path} holds a training of other settings",
            fix="choose another out=, or remove it",
            note={"factors": self.factors, "preset": self.preset, "overrides": self.overrides},
        )


@dataclass(frozen=True, kw_only=True)
class MethodPart(Part):
    """A method's scores of every passage for every query.

    Attributes:
        method: how it scores.
        indexes: its own index under the model's run, and the further ones.
    """

    module = "headwater.launch.studies.lds.scoring"

    method: MethodSettings
    indexes: list[str]

    def is_done(self) -> bool:
        return (self.path / "scores.npy").exists()

    def prepare(self) -> None:
        """Writes down what the method is, for its process, or refuses the scores of another one of this name."""
        method = asdict(self.method)
        keep_settings(
            self.path / "part.json",
            method,
            home=self.path,
            mark=fingerprint(method),
            what=f"{self.path} holds the scores of another method",
            fix="give this one another name, or remove that directory",
            note={"indexes": self.indexes},
        )
