"""What a callback is: something that looks on while the model trains, and is saved and restored with it.

Steps are counted as updates: step n is the n-th update, and "after step n" means with n updates made; 0 is the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from headwater.train.engine import Engine, StepResult
from headwater.train.parallel import World
from headwater.train.settings import PretrainSettings
from headwater.train.stream.stream import TrainingSequence, TrainingStream


class Training(Protocol):
    """What a callback sees of the trainer.

    Attributes:
        last_step: the step at which the training ends.
        batch_indexes: this rank's places in the global batch.
        stop_signal: set it, and all ranks stop after the step that is running.
        pairs: pairs of places that attend to one another in the global batch of the step that is running.
        spent_in_all: seconds of this rank beside updates since its start, by name.
        notes: goes into the next line of metrics.
    """

    settings: PretrainSettings
    world: World
    stream: TrainingStream
    engine: Engine
    last_step: int
    batch_indexes: range
    stop_signal: int | None
    pairs: int
    spent_in_all: dict[str, float]
    notes: dict[str, Any]

    @property
    def callbacks(self) -> Sequence[Callback]: ...

    def lr(self, step: int) -> float: ...

    def spends(self, what: str) -> AbstractContextManager[None]: ...

    def take_spent(self) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Callback:
    """Does nothing; subclasses override what they need. Every method is called on every rank.

    Attributes:
        name: under which a checkpoint keeps its state.
        priority: callbacks are called from the lowest to the highest, equal ones in the order in which they were given.
    """

    name = "callback"
    priority = 0

    def start(self, trainer: Training, step: int) -> None:
        """Before the first step; `step` updates have been made (not 0 on resume)."""

    def before_step(self, trainer: Training, step: int, sequences: list[TrainingSequence]) -> None:
        """Before update `step`, with this rank's sequences of its batch."""

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        """After update `step`."""

    def flush(self, trainer: Training, step: int) -> None:
        """Makes what was noted up to `step` durable: called before each checkpoint and at the end."""

    def end(self, trainer: Training, step: int) -> None:
        """After the last step, or the one at which training was asked to stop; everybody has flushed."""

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
        """At the very end, also when training is broken off."""
