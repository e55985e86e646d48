"""The parts of the study of half-corpora: the whole corpus's model, the halves', and the scores of each method."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from headwater.launch.parts.part import Part
from headwater.launch.parts.settings import keep_settings
from headwater.launch.parts.training import TrainingPart
from headwater.launch.studies.lds.outputs import OUTPUTS
from headwater.launch.studies.lds.settings import MethodSettings
from headwater.train.artifacts import fingerprint


@dataclass(frozen=True, kw_only=True)
class ModelPart(TrainingPart):
    """A training, and what its model says to the queries. Its factors: `part` (model, half, again or left), of
    a half its `number`, of a training that lacks a small set the `set` and its `slot`."""

    module = "headwater.launch.studies.lds.process"

    def is_done(self) -> bool:
        return (self.path / OUTPUTS).exists() and super().is_done()


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
