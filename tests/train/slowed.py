"""A callback for test_watching: one rank's forward pass takes longer, and nothing leaves the machine."""

from __future__ import annotations

import os
import time
from typing import Any

from headwater.train.callbacks.base import Callback, Training

SLOW_RANK, SECONDS = 1, 0.1


class Slowed(Callback):
    def start(self, trainer: Training, step: int) -> None:
        if trainer.world.rank == SLOW_RANK:
            trainer.engine.model.embedding.register_forward_hook(lambda *_: time.sleep(SECONDS))


def make(*_: Any) -> Slowed:
    os.environ["WANDB_MODE"] = "offline"  # the processes stand by already: they have no environment of the test's
    return Slowed()
