"""What each rank does in test_accumulation: one update in bf16, and the gradient that reached Adam."""

from __future__ import annotations

import torch

from headwater.train.model import Batch
from headwater.train.settings import ModelSettings, PretrainSettings, TrainSettings, ZeroSettings

MICRO_BATCHES = 8
MODEL = ModelSettings(layers=2, hidden=32, heads=4, kv_heads=2, ffn_hidden=48, vocab_size=128, init_std=0.1)


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(1, 128, (48,), generator=generator) for _ in range(MICRO_BATCHES)]
    return [Batch.from_lengths(each, torch.tensor([20, 28])) for each in tokens]


def settings(stage: int) -> PretrainSettings:
    """A step of eight micro-batches without clipping."""
    made = PretrainSettings(
        model=MODEL,
        train=TrainSettings(global_batch=MICRO_BATCHES, micro_batch=1, precision="bf16"),
        zero=ZeroSettings(stage=stage),
    )
    made.optimizer.clip = 0.0
    return made


def seen_by_adam(stage: int, out: str) -> None:
    """After one update without clipping the first moment is (1 - beta1) times the gradient: float64, by name."""
    from headwater.train import parallel
    from headwater.train.engine import Engine
    from headwater.train.model import build_model, parameter_parts

    wanted = settings(stage)
    world = parallel.start(threads=1)
    engine = Engine(build_model(MODEL, wanted.train, world, seed=1), wanted, world)
    engine.set_lr(1e-3)
    tokens = sum(int((batch.weights_T > 0).sum()) for batch in batches())
    share = MICRO_BATCHES // world.data
    own = batches()[world.data_rank * share : (world.data_rank + 1) * share]
    assert not engine.step(own, tokens).skipped
    seen = {part.name: engine.state(part.parameter)["exp_avg"].double() / 0.1 for part in parameter_parts(engine.model)}
    if world.data_rank == 0:
        torch.save(seen, out)
