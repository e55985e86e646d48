"""Which rank the others wait for.

A step takes all ranks equally long, since they wait for one another. What a rank does alone differs: it waits for its
sequences, and it runs the model forward, in which it meets no other replica and no other stage. (The ranks that share
matrices, and all ranks under ZeRO-3, do wait for one another there: a slow one shows in its whole group.)
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from headwater.train import parallel
from headwater.train.artifacts import write_bytes
from headwater.train.callbacks.base import Callback, Training
from headwater.train.callbacks.metrics import json_of, read_metrics
from headwater.train.engine import StepResult
from headwater.train.settings import StragglerSettings
from headwater.train.stream.stream import TrainingSequence


def slowest(seconds_R: Sequence[float], stages_R: Sequence[int]) -> tuple[int, float]:
    """The rank that takes longest beside those of its pipeline stage, and how many times their (lower) median."""
    usual = {
        stage: statistics.median_low([s for s, other in zip(seconds_R, stages_R, strict=True) if other == stage])
        for stage in set(stages_R)
    }
    ratios = [s / max(usual[stage], 1e-9) for s, stage in zip(seconds_R, stages_R, strict=True)]
    rank = max(range(len(ratios)), key=ratios.__getitem__)
    return rank, ratios[rank]


class Stragglers(Callback):
    """Writes a line of stragglers.jsonl every so many steps: the seconds a step that each rank runs forward and waits
    for sequences, and the slowest rank, its machine and by how much; these stand in the metrics too."""

    name = "stragglers"

    def __init__(self, path: Path, settings: StragglerSettings) -> None:
        self.path, self.settings = path, settings
        self._hooks: list[Any] = []
        self._spans: list[tuple[Any, Any]] = []
        self._began: Any = None
        self._updating = False
        self._steps = 0
        self._waited = 0.0
        self._lines: list[dict[str, Any]] = []

    def start(self, trainer: Training, step: int) -> None:
        places: list[Any] = [None] * trainer.world.size
        dist.all_gather_object(places, (platform.node(), parallel.pipeline_rank()))
        self._hosts, self._stages = zip(*places, strict=True)
        model = trainer.engine.model
        self._hooks = [model.register_forward_pre_hook(self._enter), model.register_forward_hook(self._leave)]
        if trainer.world.is_main:
            self._lines = read_metrics(self.path, step)
        self._waited = trainer.spent_in_all.get("data_s", 0.0)

    def _enter(self, *_: Any) -> None:
        self._began = moment() if self._updating else None

    def _leave(self, *_: Any) -> None:
        if self._began is not None:
            self._spans.append((self._began, moment()))

    def before_step(self, trainer: Training, step: int, sequences: list[TrainingSequence]) -> None:
        self._updating = True

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        self._updating = False
        self._steps += 1
        if step % self.settings.every and step != trainer.last_step:
            return
        waited = trainer.spent_in_all.get("data_s", 0.0)
        own = [sum(seconds_between(*span) for span in self._spans) / self._steps, (waited - self._waited) / self._steps]
        steps, self._steps, self._waited = self._steps, 0, waited
        self._spans.clear()
        seconds_R2 = [torch.zeros(2, dtype=torch.float64) for _ in range(trainer.world.size)]
        dist.all_gather(seconds_R2, torch.tensor(own, dtype=torch.float64))
        if trainer.world.is_main:
            self._note(trainer, step, steps, torch.stack(seconds_R2).tolist())

    def _note(self, trainer: Training, step: int, steps: int, seconds_R2: list[list[float]]) -> None:
        rank, ratio = slowest([forward + data for forward, data in seconds_R2], self._stages)
        found = {"slowest_rank": rank, "slowest_host": self._hosts[rank], "slowest_by": round(ratio, 3)}
        trainer.notes.update(found)
        columns = zip(*([round(value, 5) for value in pair] for pair in seconds_R2), strict=True)
        lists = dict(zip(("forward_s", "data_s"), map(list, columns), strict=True))
        self._lines.append({"step": step, **found, **lists})
        if ratio > self.settings.above:
            print(
                f"warning: rank {rank} on {self._hosts[rank]} is slow: {sum(seconds_R2[rank]):.3f} s a step alone,"
                f" {ratio:.1f} times what others take (steps {step - steps + 1} to {step}; stragglers.jsonl)",
                file=sys.stderr,
                flush=True,
            )

    def flush(self, trainer: Training, step: int) -> None:
        if trainer.world.is_main and self._lines:
            write_bytes(self.path, "".join(map(json_of, self._lines)).encode())

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def moment() -> Any:
    """Now: on a GPU, when it comes to this point of its work."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(begin: Any, end: Any) -> float:
    if isinstance(begin, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1000
