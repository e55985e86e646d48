"""What a callback is: something that looks on while the model trains, and is saved and restored with it.

Steps are counted as updates: step n is the n-th update, and "after step n" means with n updates made; 0 is the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.train.engine import StepResult
    from headwater.train.stream.stream import Row
    from headwater.train.trainer import Trainer


class Callback:
    """Does nothing; subclasses override what they need. Every method is called on every rank."""

    name = "callback"

    def start(self, trainer: Trainer, step: int) -> None:
        """Before the first step; `step` updates have been made (not 0 on resume)."""

    def before_step(self, trainer: Trainer, step: int, rows: list[Row]) -> None:
        """Before update `step`, with this rank's rows of its batch."""

    def after_step(self, trainer: Trainer, step: int, rows: list[Row], result: StepResult) -> None:
        """After update `step`."""

    def flush(self, trainer: Trainer, step: int) -> None:
        """Makes what was noted up to `step` durable: called before each checkpoint and at the end."""

    def save(self, directory: Path) -> None:
        """Writes files of its own into a checkpoint."""

    def load(self, directory: Path) -> None:
        """Reads what `save` wrote."""

    def state_dict(self) -> dict[str, Any]:
        """Small state, kept as JSON in the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def close(self) -> None:
        """After the last step, or when training is broken off."""
