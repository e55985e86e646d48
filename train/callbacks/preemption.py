"""Being asked to stop: SIGTERM and Ctrl-C end training at the next step, with a checkpoint, on all ranks alike."""

from __future__ import annotations

import signal
from typing import Any

from headwater.train.callbacks.base import Callback, Training


class Preemption(Callback):
    """Turns the first signal into a request that all ranks agree on; a second Ctrl-C stops at once."""

    name = "preemption"
    received: int | None = None

    def start(self, trainer: Training, step: int) -> None:
        def request(number: int, _: Any) -> None:
            if self.received == signal.SIGINT == number:
                raise KeyboardInterrupt
            self.received = number
            trainer.stop_signal = number

        self._before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}

    def close(self) -> None:
        for number, handler in getattr(self, "_before", {}).items():
            signal.signal(number, handler)
