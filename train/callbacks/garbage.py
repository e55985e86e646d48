"""When Python looks for garbage: at fixed steps, on all ranks at once.

Left to itself each process stops for it at moments of its own, and all others wait, for a tenth of a second here and
there; with many ranks some process stops in nearly every step.
"""

from __future__ import annotations

import gc

from headwater.train.callbacks.base import Callback, Training
from headwater.train.engine import StepResult
from headwater.train.stream.stream import TrainingSequence


class Garbage(Callback):
    name = "garbage"

    def __init__(self, every: int) -> None:
        self.every = every

    def start(self, trainer: Training, step: int) -> None:
        gc.collect()
        gc.freeze()  # modules, model and callbacks stay: nobody need look at them again
        gc.disable()

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        if step % self.every == 0:
            gc.collect()

    def close(self) -> None:
        gc.enable()
        gc.unfreeze()
