"""A callback for trainings of the tests: it stays at a step until the run is asked to stop, or let go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from headwater.train.callbacks.base import Callback, Training

STEP = 4


class Waiting(Callback):
    """Leaves the file `at-4`, then waits for a signal or the file `go`."""

    name = "waiting"

    def after_step(self, trainer: Training, step: int, sequences: list[Any], result: Any) -> None:
        if step == STEP:
            Path(f"at-{STEP}").touch()
            while trainer.stop_signal is None and not Path("go").exists():
                time.sleep(0.02)


def make(settings: Any, run: Any, world: Any) -> Callback:
    return Waiting()
