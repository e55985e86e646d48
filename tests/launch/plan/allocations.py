"""What test_plan.py runs on every rank: two steps of training, and the bytes that they had at most."""

from __future__ import annotations

import json
from pathlib import Path


def measured_and_planned(arguments: list[str], out: Path) -> None:
    """Writes the most bytes of tensors that were alive at once in two steps, and what the planner says."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from headwater.configs import load_config
    from headwater.launch.machines.estimates import Layout, is_plain, memory_of
    from headwater.train.engine import Engine
    from headwater.train.model import Batch, build_model
    from headwater.train.parallel import start
    from headwater.train.settings import PretrainSettings

    settings = load_config(PretrainSettings, None, arguments)
    world = start(threads=1)
    tokens, length = settings.train.micro_batch * settings.corpus.seq_len, settings.corpus.max_tokens
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine = Engine(build_model(settings.model, settings.train, world, seed=0), settings, world)
        assert engine.plain == is_plain(settings.train.precision, settings.zero.stage, world.size)
        for _ in range(2):
            lengths = torch.full((tokens // length,), length)
            batches = [Batch.from_lengths(torch.randint(1, 99, (tokens,)), lengths) for _ in range(2)]
            engine.step(batches, tokens)
    live = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    plan = memory_of(settings, Layout.of(settings, world.size), settings.model.vocab_size, fused=False)
    if world.is_main:
        out.write_text(json.dumps([peak, plan.total]))
