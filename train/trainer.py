"""The training loop: sequences of the stream in, updates out, callbacks looking on."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from headwater.configs.errors import UserError
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.base import Callback
from headwater.train.engine import Engine, StepResult
from headwater.train.learning_rate import learning_rate
from headwater.train.micro_batch import pack_sequences, pairs_of
from headwater.train.model import Batch
from headwater.train.parallel import World
from headwater.train.settings import PretrainSettings
from headwater.train.stream.stream import TrainingSequence, TrainingStream


class Trainer:
    """Runs updates from wherever the run stands to its end.

    Step n is the n-th update; it trains on batch n-1 of the stream, the batch that the model with n-1 updates is given.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        run: RunDir,
        world: World,
        stream: TrainingStream,
        engine: Engine,
        callbacks: list[Callback],
    ) -> None:
        self.settings, self.run_dir, self.world = settings, run, world
        self.stream, self.engine = stream, engine
        self.callbacks = sorted(callbacks, key=lambda callback: callback.priority)
        self.last_step = min(settings.train.steps, settings.train.hard_stop or settings.train.steps)
        self.stop_signal: int | None = None
        self.origin: dict[str, Any] = {}
        """What this start of the run goes on from, for its provenance."""
        per_rank = settings.train.global_batch // world.data
        self.batch_indexes = range(world.data_rank * per_rank, (world.data_rank + 1) * per_rank)
        self._losses: deque[float] = deque(maxlen=100)
        self._skipped_in_a_row = 0
        self.batches: list[Batch] = []
        self.pairs = 0
        self._spent: dict[str, float] = {}
        self.spent_in_all: dict[str, float] = {}
        self.notes: dict[str, Any] = {}

    def lr(self, step: int) -> float:
        return learning_rate(self.settings.optimizer, step, self.settings.train.steps)

    def run(self, step: int = 0) -> int:
        """Trains from `step` updates on; returns the number of updates made when it ended (early if asked to stop)."""
        try:
            for callback in self.callbacks:
                callback.start(self, step)
            with ThreadPoolExecutor(1) as reader:
                ahead = self._read_ahead(reader, step + 1)
                while step < self.last_step:
                    step += 1
                    with self.spends("data_s"):
                        sequences, batches = ahead.result()
                    ahead = self._read_ahead(reader, step + 1)
                    stop = self._update(step, sequences, batches)
                    if stop:
                        break
            for callback in self.callbacks:
                callback.flush(self, step)
            for callback in self.callbacks:
                callback.end(self, step)
        finally:
            for callback in self.callbacks:
                callback.close()
        return step

    @contextmanager
    def spends(self, what: str) -> Iterator[None]:
        """Counts the time of something beside updates, under a name of metrics.jsonl, until `take_spent`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            for counts in (self._spent, self.spent_in_all):
                counts[what] = counts.get(what, 0.0) + seconds

    def take_spent(self) -> dict[str, float]:
        """Seconds that were spent beside updates since this was asked last, by name."""
        spent, self._spent = self._spent, {}
        return spent

    def check_stream(self, step: int) -> None:
        """Reads this rank's sequences of the update after `step`, so that a shard that is damaged there is found before
        anything is written.

        Raises:
            CorruptError, MissingError: naming the shard.
        """
        self._read(min(step + 1, self.last_step))

    def _read_ahead(self, reader: ThreadPoolExecutor, step: int) -> Future[tuple[list[TrainingSequence], list[Batch]]]:
        return reader.submit(self._read, min(step, self.last_step))

    def _read(self, step: int) -> tuple[list[TrainingSequence], list[Batch]]:
        sequences = self.stream.sequences(step - 1, self.batch_indexes.start, self.batch_indexes.stop)
        size = self.settings.train.micro_batch
        batches = [pack_sequences(sequences[i : i + size]) for i in range(0, len(sequences), size)]
        if self.world.device.type == "cpu":
            return sequences, batches
        return sequences, [batch.pinned() for batch in batches]

    def _update(self, step: int, sequences: list[TrainingSequence], batches: list[Batch]) -> bool:
        """One update; returns whether some rank was asked to stop."""
        for callback in self.callbacks:
            callback.before_step(self, step, sequences)
        tokens, self.pairs, stop = self._agree(
            sum(int((batch.weights_T > 0).sum()) for batch in batches), sum(pairs_of(each) for each in sequences)
        )
        self.engine.set_lr(self.lr(step))
        self.batches = [batch.to(self.world.device) for batch in batches]
        result = self.engine.step(self.batches, tokens, self._accept)
        self._count_skips(step, result)
        for callback in self.callbacks:
            callback.after_step(self, step, sequences, result)
        return stop

    def _agree(self, tokens: int, pairs: int) -> tuple[int, int, bool]:
        """Tokens with loss and pairs that attend in the global batch, and whether any rank wants to stop: one small
        reduction for all."""
        if self.world.size == 1:
            return tokens, pairs, self.stop_signal is not None
        note = torch.tensor([float(tokens), float(pairs), float(self.stop_signal is not None)], dtype=torch.float64)
        dist.all_reduce(note)
        replicas = self.world.tensor * self.world.pipeline
        return round(note[0].item() / replicas), round(note[1].item() / replicas), note[2].item() > 0

    def _accept(self, loss: float) -> bool:
        """Whether a step with this loss may update the model: not when it is NaN, infinite, or a spike."""
        spike = self.settings.train.spike
        usual = statistics.median(self._losses) if len(self._losses) >= 20 else None
        if not math.isfinite(loss) or (spike and usual is not None and loss > spike * usual):
            return False
        self._losses.append(loss)
        return True

    def _count_skips(self, step: int, result: StepResult) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if result.skipped else 0
        if self._skipped_in_a_row > self.settings.train.max_skips:
            raise UserError(
                f"training has diverged: {self._skipped_in_a_row} steps in a row were skipped, the last is step {step}",
                got=f"loss {result.loss}",
                expected="a finite loss without a spike",
                fix="lower optimizer.lr, or go on from an earlier checkpoint",
            )

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "skipped_in_a_row": self._skipped_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.extend(state["losses"])
        self._skipped_in_a_row = state["skipped_in_a_row"]
