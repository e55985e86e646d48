"""Metrics: one JSON line a step, figures on boards, and a progress bar for whoever watches.

`tokens_per_s` is measured from line to line, so it counts everything that a run waits for; what of that time was not
spent on updates stands beside it: `data_s` (waiting for sequences), `probe_s`, `checkpoint_s`. Probes and checkpoints
come after the line of their step, so they are in the next one. A number that is not finite is written as null.
"""

from __future__ import annotations

import json
import math
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
from headwater.train.callbacks.boards import Boards
from headwater.train.engine import StepResult
from headwater.train.progress import EVERY, Pace, clock
from headwater.train.settings import ModelSettings
from headwater.train.stream.stream import TrainingSequence

SHOWN = (
    *("loss", "lr", "grad_norm", "tokens_per_s", "mfu"),
    *("data_s", "probe_s", "validation_s", "checkpoint_s", "slowest_by"),
)
"""What of a line is shown on boards."""


def read_metrics(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file up to a step, null as NaN; a line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if last_step is None or entry["step"] <= last_step:
            lines.append({key: math.nan if value is None else value for key, value in entry.items()})
    return lines


def json_of(entry: dict[str, Any]) -> str:
    """A line of a metrics file."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in entry.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


class Metrics(Callback):
    name = "metrics"

    def __init__(self, path: Path, boards: Boards | None, *, every: int, peak_tflops: float) -> None:
        self.path, self.boards, self.every, self.peak_tflops = path, boards, every, peak_tflops
        self._file: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._seen_tokens = self._restored = 0
        self._recent: deque[float] = deque(maxlen=50)
        self._matrices = 0
        self._tokens = 0
        self._operations = 0.0

    def start(self, trainer: Training, step: int) -> None:
        self._matrices = whole_matrices(trainer)
        if not trainer.world.is_main:
            return
        lines = read_metrics(self.path, step)
        write_bytes(self.path, "".join(map(json_of, lines)).encode())
        self._seen_tokens = self._restored
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 (kept open for the run)
        self._open_bar(trainer, step)
        self._line = self._step = time.perf_counter()

    def _open_bar(self, trainer: Training, step: int) -> None:
        self._pace, self._said = Pace(trainer.last_step, step), time.perf_counter()
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

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        if not trainer.world.is_main:
            return
        now = time.perf_counter()
        self._seen_tokens += result.tokens
        self._tokens += result.tokens
        self._operations += operations(trainer.settings.model, self._matrices, result.tokens, trainer.pairs)
        self._recent.append(result.tokens / (now - self._step))
        self._step = now
        if step % self.every and step != trainer.last_step:
            return
        entry = {
            "step": step,
            "loss": result.loss,
            "lr": trainer.lr(step),
            "grad_norm": result.grad_norm,
            "tokens": self._seen_tokens,
            "tokens_per_s": round(self._tokens / (now - self._line), 1),
            **{name: round(seconds, 4) for name, seconds in trainer.take_spent().items()},
            "memory_bytes": memory_bytes(),
            **trainer.notes,
        }
        trainer.notes.clear()
        if self.peak_tflops:
            entry["mfu"] = self._operations / (now - self._line) / (self.peak_tflops * 1e12 * trainer.world.size)
        self._line, self._tokens, self._operations = now, 0, 0.0
        if result.skipped:
            entry["skipped"] = True
        self._file.write(json_of(entry))
        if self.boards is not None:
            self.boards.show({f"train/{key}": entry[key] for key in SHOWN if key in entry}, step)
        self._show(trainer, step, result)

    def _show(self, trainer: Training, step: int, result: StepResult) -> None:
        note = f"loss {result.loss:.3f}  {statistics.median(self._recent):,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
            return
        now = time.perf_counter()
        if step == trainer.last_step or step % max(1, trainer.last_step // 10) == 0 or now - self._said >= EVERY:
            self._said = now
            left = self._pace.left(step)
            more = f"  about {clock(left)} left" if left else ""
            print(f"step {step}/{trainer.last_step}  {note}{more}", file=sys.stderr, flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self._seen_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state.get("tokens", 0)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()


def operations(model: ModelSettings, matrices: int, tokens: int, pairs: int) -> float:
    """Floating-point operations of a forward and backward pass, nothing counted that is computed twice.

    Args:
        matrices: numbers in the matrices that every token is multiplied with: six operations each for a token.
        pairs: of places that attend to one another: scores and mixing take 2 x hidden operations each, in every layer,
            three times with the backward pass.
    """
    return 6.0 * matrices * tokens + 12.0 * model.layers * model.hidden * pairs


def whole_matrices(trainer: Training) -> int:
    """Numbers in the matrices of the whole model, over all pipeline stages; an embedding that is only looked up is not
    among them. Collective."""
    from headwater.train.model import EMBEDDING, parameter_parts

    gpt = trainer.engine.model
    shapes = [part.shape for part in parameter_parts(gpt) if gpt.tied or part.name != EMBEDDING]
    own = sum(torch.Size(shape).numel() for shape in shapes if len(shape) > 1)
    count = torch.tensor([float(own)], dtype=torch.float64, device=trainer.world.device)
    if trainer.world.pipeline > 1:
        dist.all_reduce(count, group=parallel.pipeline_group())
    return int(count.item())


def memory_bytes() -> int:
    """Peak memory: of the GPU when there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
