"""When checkpoints are written, and which of them stay."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from headwater.train import parallel
from headwater.train.callbacks.base import Callback, Training
from headwater.train.checkpoint import Checkpoint, steps_in
from headwater.train.checkpoint_writer import CheckpointWriter, prune
from headwater.train.engine import StepResult
from headwater.train.parallel import World
from headwater.train.remote import Store
from headwater.train.remote_checkpoints import RemoteCheckpoints, Uploads
from headwater.train.sending import Helper, Orders
from headwater.train.settings import CheckpointSettings
from headwater.train.stream.stream import TrainingSequence

T = TypeVar("T")
PATIENCE_S = 60.0
"""Seconds that a run which was asked to stop waits for what is being sent."""


class Checkpoints(Callback):
    """Writes a checkpoint every so often, at fixed steps, around injections, and at the end.

    Args:
        directory: the run's checkpoint directory.
        settings: when.
        meta: what every checkpoint.json says beside the step (model settings, fingerprints).
    """

    name = "checkpoints"
    priority = 100  # last, so that every other callback has noted the step that a checkpoint holds

    def __init__(self, directory: Path, settings: CheckpointSettings, world: World, meta: dict[str, Any]) -> None:
        self.directory, self.settings, self.meta = directory, settings, meta
        self.writer = CheckpointWriter(directory, world, asynchronous=settings.asynchronous)
        self._fixed = set(settings.steps)
        self._saved: int | None = None
        self._uploads: Uploads | None = None
        self._orders: Orders | None = None
        self._helper: Helper | None = None
        if settings.remote:
            self._share_uploads(RemoteCheckpoints(Store(settings.remote)), world)

    def _share_uploads(self, remote: RemoteCheckpoints, world: World) -> None:
        """Rank 0 says when what is sent, and ends it with checkpoint.json; all send."""
        if not world.is_main:
            self._helper = Helper(remote, self.directory, world)
            return
        self._orders = Orders(remote, self.directory, world) if world.size > 1 else None
        send_files = self._orders.send_files if self._orders is not None else None
        self._uploads = Uploads(remote, self.directory, self.settings.keep, self._fixed, warn, send_files)

    def start(self, trainer: Training, step: int) -> None:
        if self.settings.around_injections:
            # A batch injected after t updates is update t + 1.
            self._fixed |= {near for t in trainer.stream.injection_steps for near in (t, t + 1)}
        self._saved = step if step else None
        if self._helper is not None:
            self._helper.start()
        if self._uploads is not None:
            for there in steps_in(self.directory):
                if there == step or (there < step and there in self._fixed):
                    self._uploads.add(there)  # if it is not in the store yet
        if step == 0 and 0 in self._fixed:
            self._save(trainer, 0)

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        if self.writer.has_failed:  # all ranks end at the next step, and say why
            trainer.stop_signal = trainer.stop_signal or signal.SIGTERM
        if step in self._fixed or (self.settings.every and step % self.settings.every == 0):
            self._save(trainer, step)

    def end(self, trainer: Training, step: int) -> None:
        if step != self._saved:
            self._save(trainer, step)
        self.writer.wait()
        if self.settings.remote:
            self._finish_uploads(trainer)

    def _finish_uploads(self, trainer: Training) -> None:
        """Waits until everything is sent, `PATIENCE_S` at most from when rank 0 is asked to stop. The ranks meet every
        second: one that cannot say what became of its part ends the wait of all."""
        world, end = trainer.world, math.inf

        def is_over(uploads: Uploads) -> bool:
            nonlocal end
            if trainer.stop_signal is not None:
                end = min(end, time.monotonic() + PATIENCE_S)
            return uploads.wait(1.0) or time.monotonic() > end

        self._ask(world, Uploads.try_again)
        while not self._ask(world, is_over):
            parallel.agree(world, self._helper.error if self._helper is not None else None)
        self._ask(world, lambda uploads: uploads.conclude(patient=trainer.stop_signal is None))

    def _ask(self, world: World, action: Callable[[Uploads], T]) -> T:
        """What rank 0's uploads say, on all ranks."""

        def ask() -> T:
            assert self._uploads is not None
            return action(self._uploads)

        return parallel.from_main(world, ask)

    def _save(self, trainer: Training, step: int) -> None:
        with trainer.spends("checkpoint_s"):
            self._write(trainer, step)

    def _write(self, trainer: Training, step: int) -> None:
        for callback in trainer.callbacks:
            callback.flush(trainer, step)

        def extra(directory: Path) -> None:
            for callback in trainer.callbacks:
                callback.save(directory)
            if trainer.world.is_main:
                states = {callback.name: callback.state_dict() for callback in trainer.callbacks}
                (directory / "state.json").write_text(json.dumps({"trainer": trainer.state_dict(), **states}))

        meta = {**self.meta, "updates": trainer.engine.updates, "lr": trainer.lr(step)}
        self.writer.save(trainer.engine, step, meta, extra, partial(self._written, step))
        self._saved = step

    def _written(self, step: int) -> None:
        """On rank 0, perhaps behind the training's back: a checkpoint is in its place."""
        unsent: set[int] = set()
        if self._uploads is not None:
            self._uploads.add(step)
            unsent = self._uploads.unsent
        prune(self.directory, self.settings.keep, self._fixed | unsent)

    def close(self) -> None:
        self.writer.abandon()
        for sending in (self._uploads, self._helper):
            if sending is not None:
                sending.abandon()
        if self._orders is not None:
            self._orders.end()


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def restore(trainer: Training, checkpoint: Checkpoint) -> None:
    """Gives the trainer and its callbacks back what a checkpoint kept for them."""
    state = json.loads((checkpoint.path / "extra" / "state.json").read_text())
    trainer.load_state_dict(state["trainer"])
    for callback in trainer.callbacks:
        callback.load_state_dict(state.get(callback.name, {}))
        callback.load(checkpoint.path / "extra")
