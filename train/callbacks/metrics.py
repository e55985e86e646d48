"""Metrics: one JSON line a step, TensorBoard events, and a progress bar for whoever watches."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from headwater.train import parallel
from headwater.train.artifacts import write_bytes
from headwater.train.callbacks.base import Callback, Training
from headwater.train.engine import StepResult
from headwater.train.stream.stream import TrainingSequence


def read_metrics(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file up to a step; a line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if last_step is None or entry["step"] <= last_step:
            lines.append(entry)
    return lines


class Metrics(Callback):
    name = "metrics"

    def __init__(self, path: Path, tensorboard: Path | None, *, every: int, peak_tflops: float) -> None:
        self.path, self.tensorboard, self.every, self.peak_tflops = path, tensorboard, every, peak_tflops
        self._file: Any = None
        self._writer: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._seen_tokens = self._restored = 0
        self._recent: deque[float] = deque(maxlen=50)
        self._parameters = 0

    def start(self, trainer: Training, step: int) -> None:
        self._parameters = whole_numel(trainer)
        if not trainer.world.is_main:
            return
        lines = read_metrics(self.path, step)
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._seen_tokens = self._restored
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 (kept open for the run)
        if self.tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.tensorboard), purge_step=step + 1)
        self._open_bar(trainer, step)

    def _open_bar(self, trainer: Training, step: int) -> None:
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("pretrain"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task("", total=trainer.last_step, completed=step, note="")

    def before_step(self, trainer: Training, step: int, sequences: list[TrainingSequence]) -> None:
        self._began = time.perf_counter()

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        if not trainer.world.is_main:
            return
        self._seen_tokens += result.tokens
        self._recent.append(result.tokens / (time.perf_counter() - self._began))
        if step % self.every and step != trainer.last_step:
            return
        entry = {
            "step": step,
            "loss": result.loss,
            "lr": trainer.lr(step),
            "grad_norm": result.grad_norm,
            "tokens": self._seen_tokens,
            "tokens_per_s": round(self._recent[-1], 1),
            "memory_bytes": memory_bytes(),
        }
        if self.peak_tflops:
            flops = 6 * self._parameters * self._recent[-1]
            entry["mfu"] = flops / (self.peak_tflops * 1e12 * trainer.world.size)
        if result.skipped:
            entry["skipped"] = True
        self._file.write(json.dumps(entry) + "\n")
        if self._writer is not None:
            for key in ("loss", "lr", "grad_norm", "tokens_per_s", "mfu"):
                if key in entry:
                    self._writer.add_scalar(f"train/{key}", entry[key], step)
        self._show(trainer, step, result)

    def _show(self, trainer: Training, step: int, result: StepResult) -> None:
        note = f"loss {result.loss:.3f}  {statistics.median(self._recent):,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif step == trainer.last_step or step % max(1, trainer.last_step // 10) == 0:
            print(f"step {step}/{trainer.last_step}  {note}", file=sys.stderr, flush=True)

    def flush(self, trainer: Training, step: int) -> None:
        if self._writer is not None:
            self._writer.flush()

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self._seen_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state.get("tokens", 0)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def whole_numel(trainer: Training) -> int:
    """Parameters of the whole model, over all pipeline stages. Collective."""
    from headwater.train.model import parameter_parts

    own = sum(torch.Size(part.shape).numel() for part in parameter_parts(trainer.engine.model))
    count = torch.tensor([float(own)], dtype=torch.float64, device=trainer.world.device)
    if trainer.world.pipeline > 1:
        dist.all_reduce(count, group=parallel.pipeline_group())
    return int(count.item())


def memory_bytes() -> int:
    """Peak memory: of the GPU when there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
