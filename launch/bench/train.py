"""Tokens per second of the trainer against a bare loop over the same Megatron model and against Hugging Face's Llama.

    headwater bench train                                             5M and 30M parameters, fp32 and bf16
    headwater bench train --models 5m --precisions fp32 --rounds 5    a minute

All train on the same rows of a packed corpus. The bare loop is forward, backward, clipping and PyTorch's AdamW over the
model that the trainer trains, without stream, ledger, metrics or DeepSpeed. In bf16 a trainer keeps fp32 masters;
`bare, master weights` does too, `bare` updates bf16 in place. Hugging Face's model sees rows whole, its attention
crossing passages, as in plain PyTorch.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

MODELS = {
    "5m": {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 4, "ffn_hidden": 688},
    "30m": {"layers": 8, "hidden": 512, "heads": 8, "kv_heads": 8, "ffn_hidden": 1376},
}
BATCH = 16
SEQ_LEN = 256
STEPS = 1_000_000  # the learning rate stays in its warmup: no variant may diverge


def main(
    models: Sequence[str] = ("5m", "30m"),
    precisions: Sequence[str] = ("fp32", "bf16"),
    rounds: int = 5,
    threads: int = 1,
    passages: int = 2000,
) -> dict[str, dict[str, Any]]:
    """Interleaved in one run, median of the rounds. With one thread the clock is this process's own time, which other
    load on the machine moves little; with more it is the wall's.

    Returns:
        Of each model and precision: tokens_per_s by variant, and the share of a step's time by part.
    """
    from headwater.train import parallel
    from headwater.train.numerics import keep_freed_memory, use_onednn

    world = parallel.start(threads=threads)
    keep_freed_memory()
    use_onednn()
    clock = time.process_time if threads == 1 else time.perf_counter
    results = {}
    try:
        with tempfile.TemporaryDirectory() as directory:
            for name in models:
                for precision in precisions:
                    settings = make_settings(Path(directory), name, precision, passages)
                    results[f"{name} {precision}"] = measure(settings, world, rounds, clock)
                    _print(f"{name} {precision}, {threads} thread(s)", results[f"{name} {precision}"])
    finally:
        parallel.stop()
    return results


def make_settings(directory: Path, name: str, precision: str, passages: int) -> Any:
    """Settings of a run directory whose corpus is there."""
    from headwater.configs import load_config
    from headwater.train.corpus.build import build_corpus
    from headwater.train.settings import PretrainSettings

    shape = [f"model.{key}={value}" for key, value in MODELS[name].items()]
    sizes = [f"corpus.passages={passages}", f"corpus.seq_len={SEQ_LEN}", "corpus.tokenizer.vocab_size=8192"]
    batch = [f"train.{key}={BATCH}" for key in ("global_batch", "micro_batch")]
    rest = [f"train.precision={precision}", f"train.steps={STEPS}", "optimizer.warmup=100000", "facts.people=0"]
    settings = load_config(PretrainSettings, None, [f"out={directory / 'run'}", *shape, *sizes, *batch, *rest])
    build_corpus(settings)
    return settings


def measure(settings: Any, world: Any, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    from headwater.launch.bench.timing import interleaved

    trainer = make_trainer(settings, world)
    variants: dict[str, Callable[[], object]] = {
        "trainer": TrainerStep(trainer),
        "bare": bare_step(trainer, world),
        "huggingface": huggingface_step(trainer),
    }
    if settings.train.precision == "bf16":
        variants["bare, master weights"] = bare_step(trainer, world, master=True)
    try:
        seconds = interleaved(variants, rounds, clock)
        parts = parts_of_a_step(trainer, rounds, clock)
    finally:
        for callback in trainer.callbacks:
            callback.close()
    tokens = settings.train.global_batch * SEQ_LEN
    return {
        "tokens_per_s": {name: tokens / spent for name, spent in seconds.items()},
        "ratio": {name: spent / seconds["trainer"] for name, spent in seconds.items()},
        "parts": parts,
    }


def make_trainer(settings: Any, world: Any) -> Any:
    """The trainer as a run has it, with ledger and metrics."""
    from headwater.train.artifacts import RunDir
    from headwater.train.callbacks.ledger import Ledger
    from headwater.train.callbacks.metrics import Metrics
    from headwater.train.run import build_trainer

    run = RunDir.at(settings.out)
    trainer, _ = build_trainer(settings, run, world)
    trainer.callbacks = [each for each in trainer.callbacks if isinstance(each, Ledger | Metrics)]
    for callback in trainer.callbacks:
        callback.start(trainer, 0)
    return trainer


class TrainerStep:
    """A step of the trainer at each call, reading included."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.step = trainer, 0

    def __call__(self) -> None:
        self.step += 1
        self.trainer._update(self.step, *self.trainer._read(self.step))


def bare_step(trainer: Any, world: Any, master: bool = False) -> Callable[[], object]:
    """The same batches through the same model in a loop that does nothing else; `master` keeps fp32 weights."""
    import torch

    from headwater.train.model import build_model

    settings = trainer.settings
    model = build_model(settings.model, settings.train, world, seed=settings.seed)
    held = list(model.parameters())
    masters = [torch.nn.Parameter(p.detach().float()) for p in held] if master else held
    optimizer = make_optimizer(masters, settings)
    batches = _batches(trainer)

    def step() -> None:
        batch = next(batches)
        total = model.run(batch)[0]
        (total / int((batch.weights_T > 0).sum())).backward()
        if master:
            for full, parameter in zip(masters, held, strict=True):
                assert parameter.grad is not None
                full.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, settings.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        float(total.detach())
        if master:
            torch._foreach_copy_([p.detach() for p in held], [p.detach() for p in masters])

    return step


def huggingface_step(trainer: Any) -> Callable[[], object]:
    """Hugging Face's Llama of the same shape in plain PyTorch, the same rows as a batch."""
    import torch

    from headwater.train.compat import declare_torchvision_operators
    from headwater.train.huggingface.families import family_config

    declare_torchvision_operators()
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = trainer.settings
    config = LlamaConfig(**family_config(settings.model, None, None, SEQ_LEN, "fp32"))
    dtype = torch.bfloat16 if settings.train.precision == "bf16" else torch.float32
    model: Any = torch.nn.Module.to(LlamaForCausalLM(config), dtype).train()
    optimizer = make_optimizer(list(model.parameters()), settings)
    batches = _batches(trainer)

    def step() -> None:
        tokens_BS = next(batches).tokens_T.view(-1, SEQ_LEN)
        loss = model(input_ids=tokens_BS, labels=tokens_BS, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())

    return step


def make_optimizer(parameters: list[Any], settings: Any) -> Any:
    import torch

    chosen = settings.optimizer
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": chosen.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    # The middle of the trainer's warmup would do as well: the rate does not change the work.
    return torch.optim.AdamW(groups, lr=1e-6, betas=(chosen.beta1, chosen.beta2), eps=chosen.eps, fused=True)


def _batches(trainer: Any) -> Iterator[Any]:
    step = 0
    while True:
        step += 1
        yield trainer._read(step)[1][0]


def parts_of_a_step(trainer: Any, steps: int, clock: Callable[[], float]) -> dict[str, float]:
    """Share of a step's time by part; what is left over is `rest`."""
    spent: dict[str, float] = defaultdict(float)
    engine = trainer.engine
    watched: list[tuple[Any, str, str]] = [
        (trainer, "_read", "read and pack"),
        (engine.model, "forward", "forward"),
        (engine.deepspeed, "backward", "backward"),
        (engine, "_clip", "clip"),
        (engine.deepspeed, "step", "update"),
        *((callback, "after_step", "ledger and metrics") for callback in trainer.callbacks),
    ]
    step = TrainerStep(trainer)
    with _timed(watched, spent, clock):
        step()
        spent.clear()
        began = clock()
        for _ in range(steps):
            step()
        whole = clock() - began
    parts = {name: seconds / whole for name, seconds in spent.items()}
    return {**parts, "rest": 1 - sum(parts.values())}


@contextmanager
def _timed(watched: list[tuple[Any, str, str]], spent: dict[str, float], clock: Callable[[], float]) -> Iterator[None]:
    def call(original: Callable[..., Any], name: str, *given: Any, **named: Any) -> Any:
        began = clock()
        try:
            return original(*given, **named)
        finally:
            spent[name] += clock() - began

    for owner, attribute, name in watched:
        setattr(owner, attribute, partial(call, getattr(owner, attribute), name))
    try:
        yield
    finally:
        for owner, attribute, _ in watched:
            delattr(owner, attribute)


def _print(title: str, result: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, rate in result["tokens_per_s"].items():
        note = "" if name == "trainer" else f"   trainer / this: {result['ratio'][name]:.3f}"
        print(f"  {name:24} {rate:10,.0f} tokens/s{note}")
    print("  a step: " + ", ".join(f"{name} {share:.1%}" for name, share in result["parts"].items()))
