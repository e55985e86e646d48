"""What capturing gradient rows adds to a training step.

headwater bench capture --correction adafactor
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from headwater.train.settings import CaptureSettings, ModelSettings, OptimizerSettings, PretrainSettings, TrainSettings


def main(
    layers: int = 2,
    hidden: int = 256,
    heads: int = 4,
    ffn_hidden: int = 688,
    vocab: int = 8192,
    seq_len: int = 256,
    batch: int = 4,
    longest: int = 64,
    proj: int = 16,
    head: int = 0,
    correction: str = "adafactor",
    refresh: int = 10,
    precision: str = "fp32",
    rounds: int = 9,
) -> dict[str, Any]:
    """Time of a training step with capture over one without, taking turns in one run: one thread, process time.

    The defaults are the model of `headwater demo`. A round is --refresh steps, so that the correction's refresh is in.
    --head: dimensions a side of the output head's rows, none by default.
    """
    import torch

    from headwater.launch.bench.timing import interleaved
    from headwater.train import parallel
    from headwater.train.numerics import keep_freed_memory, use_onednn

    settings = PretrainSettings(
        model=ModelSettings(
            layers=layers, hidden=hidden, heads=heads, kv_heads=heads, ffn_hidden=ffn_hidden, vocab_size=vocab
        ),
        optimizer=OptimizerSettings(),
        train=TrainSettings(global_batch=batch, micro_batch=batch, precision=precision),
    )
    settings.callbacks.capture = CaptureSettings(proj=proj, head=head, correction=correction, refresh=refresh)
    world = parallel.start(threads=1)
    try:
        keep_freed_memory()
        if precision == "fp32":
            use_onednn()
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            steps = Steps(settings, world, Path(folder), seq_len, longest)
            seconds = interleaved({"plain": steps.plain, "captured": steps.captured}, rounds)
    finally:
        parallel.stop()
    tokens = seq_len * batch * refresh
    found: dict[str, Any] = {
        "ratio": seconds["captured"] / seconds["plain"],
        "overhead": seconds["captured"] / seconds["plain"] - 1,
        "tokens_per_s": tokens / seconds["captured"],
        "tokens_per_s_plain": tokens / seconds["plain"],
        "correction": correction,
        "proj": proj,
        "head": head,
        "refresh": refresh,
        "precision": precision,
        "dims": steps.capture.layout.dims,
    }
    widths = f"{proj} x {proj} a layer" + (f", {head} x {head} of the head" if head else "")
    print(f"{correction}, {widths}, {precision}, refreshed every {refresh} steps; one thread, process time")
    print(f"tokens/s plain {found['tokens_per_s_plain']:,.0f}, with capture {found['tokens_per_s']:,.0f}")
    print(f"capture adds {100 * found['overhead']:.1f}% to a training step")
    return found


class Numbered:
    """Passages that have no text, for the callback that counts and names them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def ids(self, start: int, stop: int) -> list[str]:
        return [f"passage {number}" for number in range(start, stop)]


class Steps:
    """Training steps on random passages, as the training loop makes them, with the callback or without."""

    def __init__(self, settings: PretrainSettings, world: Any, folder: Path, seq_len: int, longest: int) -> None:
        import numpy as np

        from headwater.attribution.capture.callback import Capture
        from headwater.train.artifacts import RunDir
        from headwater.train.engine import Engine
        from headwater.train.micro_batch import pack_sequences
        from headwater.train.model import build_model
        from headwater.train.stream.stream import TrainingSequence

        self.settings = settings
        draw = np.random.default_rng(0)
        model = build_model(settings.model, settings.train, world, seed=0)
        self.engine = Engine(model, settings, world)
        self.engine.set_lr(1e-4)
        self.rows = []
        count = 0
        for number in range(settings.train.global_batch):
            lengths: list[int] = []
            while sum(lengths) < seq_len - longest // 2:
                lengths.append(min(int(draw.integers(longest // 2, longest + 1)), seq_len - sum(lengths)))
            tokens = draw.integers(1, settings.model.vocab_size, seq_len)
            tokens[sum(lengths) :] = 0
            passages = np.arange(count, count + len(lengths))
            count += len(lengths)
            self.rows.append(
                TrainingSequence(
                    tokens, np.array(lengths, dtype=np.int32), passages, np.zeros(len(lengths), bool), number
                )
            )
        size = settings.train.micro_batch
        self.batches = [pack_sequences(self.rows[i : i + size]) for i in range(0, len(self.rows), size)]
        self.tokens = sum(int((batch.weights_T > 0).sum()) for batch in self.batches)
        trainer: Any = SimpleNamespace(
            engine=self.engine,
            world=world,
            settings=settings,
            last_step=-1,
            stream=SimpleNamespace(passages=Numbered(count)),
            lr=lambda step: 1e-4,
        )
        self.trainer = trainer
        self.engine.step(self.batches, self.tokens)
        self.capture = Capture(RunDir.at(folder), settings.callbacks.capture)
        self.capture.start(trainer, 1)
        self.capture.detach()

    def plain(self) -> None:
        for _ in range(self.settings.callbacks.capture.refresh):
            self.engine.step(self.batches, self.tokens)

    def captured(self) -> None:
        self.capture.attach()
        for step in range(1, 1 + self.settings.callbacks.capture.refresh):
            self.capture.before_step(self.trainer, step, self.rows)
            result = self.engine.step(self.batches, self.tokens)
            self.capture.after_step(self.trainer, step, self.rows, result)
        self.capture.detach()
