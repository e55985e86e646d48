"""What ranks do in test_skipping: train with steps that are not finite, or in a bare loop of PyTorch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def open_trainer(arguments: list[str]) -> tuple[Any, int]:
    from headwater.configs import load_config
    from headwater.train import parallel
    from headwater.train.artifacts import RunDir
    from headwater.train.run import build_trainer, prepare
    from headwater.train.settings import PretrainSettings

    settings = load_config(PretrainSettings, arguments[0], arguments[1:])
    world = parallel.start(tensor=settings.parallel.tensor, pipeline=settings.parallel.pipeline)
    run = RunDir.at(settings.out)
    prepare(settings, run, world)
    return build_trainer(settings, run, world)


def poisoned(arguments: list[str], where: str, steps: list[int]) -> None:
    """Trains; at `steps` the loss is reported as NaN, infinite or several times ("3 x") what it is, or an element of
    one gradient really is infinite."""
    trainer, start = open_trainer(arguments)
    engine = trainer.engine
    now = [0]
    before = type(trainer)._update

    def update(step: int, rows: Any, batches: Any) -> bool:
        now[0] = step
        return before(trainer, step, rows, batches)

    trainer._update = update
    if where == "gradient":
        norm = engine.model.decoder.layers[0].input_layernorm.weight
        norm.register_hook(lambda gradient: gradient * math.inf if now[0] in steps else gradient)
    else:
        mean, (number, times, _) = engine._mean_loss, where.partition(" x")

        def reported(*given: Any) -> float:
            loss = mean(*given)
            return loss if now[0] not in steps else float(number) * (loss if times else 1)

        engine._mean_loss = reported
    trainer.run(start)


def bare_loop(arguments: list[str], skipped: list[int], out: str) -> None:
    """The same batches through the same model, with PyTorch's own AdamW and clipping, and nothing else."""
    import torch

    from headwater.train.model import build_model, parameter_parts

    trainer, _ = open_trainer(arguments)
    run = trainer.settings
    model, settings = build_model(run.model, run.train, trainer.world, seed=run.seed), run.optimizer
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) is big] for big in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps,
    )  # fmt: skip
    losses, norms = [], []
    for step in range(1, trainer.last_step + 1):
        optimizer.zero_grad()
        batches = trainer._read(step)[1]
        tokens = sum(int((batch.weights_T > 0).sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            loss = model.run(batch)[0] / tokens
            loss.backward()
            total += float(loss)
        losses.append(total)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf)))
        for group in optimizer.param_groups:
            group["lr"] = trainer.lr(step)
        if step not in skipped:
            optimizer.step()
    weights = {part.name: part.parameter.detach().clone() for part in parameter_parts(model)}
    torch.save(weights, Path(out) / "weights.pt")
    (Path(out) / "bare.json").write_text(json.dumps({"losses": losses, "norms": norms}))
