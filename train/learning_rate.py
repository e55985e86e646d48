"""The learning rate of each update."""

from __future__ import annotations

import math

from headwater.train.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Learning rate of update `step` (1 is the first) of `steps`: linear warmup, then down to `min_lr_ratio`.

    `wsd` (warmup, stable, decay) stays at the peak until the last `decay_ratio` of the steps and then falls linearly.
    """
    if settings.warmup > 0 and step <= settings.warmup:
        return settings.lr * step / settings.warmup
    done = min(1.0, (step - settings.warmup) / max(1, steps - settings.warmup))
    floor = settings.min_lr_ratio
    if settings.schedule == "constant":
        share = 1.0
    elif settings.schedule == "linear":
        share = 1.0 - done * (1.0 - floor)
    elif settings.schedule == "cosine":
        share = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
    else:
        begin = 1.0 - settings.decay_ratio
        share = 1.0 if done <= begin else 1.0 - (done - begin) / max(settings.decay_ratio, 1e-12) * (1.0 - floor)
    return settings.lr * share
