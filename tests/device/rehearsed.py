"""Stages on the pretended device. Trainings run in processes of their own: DeepSpeed asks once a process which
accelerator there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch

from ..kernels.emulated import emulate
from .pretended import Pretended, here, pretended


def varlen(query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **options: Any) -> Any:
    """`varlen_attn` segment by segment, in plain torch, for a causal window."""
    assert query.dtype in (torch.bfloat16, torch.float16)
    assert cu_q.device == query.device
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert options["window_size"] == (-1, 0)
    ends = cu_q.cpu().tolist()
    assert max_q == max_k == max(b - a for a, b in pairwise(ends))
    parts = []
    for first, last in pairwise(ends):
        q, k, v = (x[first:last].transpose(0, 1)[None] for x in (query, key, value))
        made = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=options["enable_gqa"]
        )
        parts.append(made[0].transpose(0, 1))
    return torch.cat(parts)


@contextmanager
def rehearsal() -> Iterator[Pretended]:
    """The device, with twins of the kernels that a GPU alone has."""
    with pytest.MonkeyPatch.context() as patch, pretended() as device:
        emulate(patch)
        patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
        # Recomputation saves and restores the device's generator; nothing draws from it.
        patch.setattr("megatron.core.tensor_parallel.random._get_cuda_rng_state", lambda *_, **__: None)
        patch.setattr("megatron.core.tensor_parallel.random._set_cuda_rng_state", lambda *_, **__: None)
        yield device


def train(arguments: list[str], backends: tuple[str, ...]) -> int:
    """`python -m headwater.train` on the device, and looks at where things are after each step."""
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    from headwater.train.__main__ import main
    from headwater.train.engine import Engine
    from headwater.train.trainer import Trainer

    update, step = Trainer._update, Engine.step

    with rehearsal() as device, pytest.MonkeyPatch.context() as patch:

        def stepped(engine: Engine, *given: Any, **options: Any) -> Any:
            done = step(engine, *given, **options)
            if engine.updates > 2:  # by then signs and corrections are where they are needed
                pageable = [shape for shape, pinned in device.to_device if shape and not pinned]
                assert not pageable, f"copied from memory that is not pinned: {pageable}"
            return done

        def looked_at(trainer: Trainer, *given: Any) -> bool:
            device.forget()
            stop = update(trainer, *given)
            sent = [numbers for _, numbers in device.cpu_collectives]
            assert max(sent, default=0) <= 1000, f"sent over the CPU: {device.cpu_collectives}"
            for parameter in trainer.engine.model.parameters():
                states = trainer.engine.state(parameter)
                assert {"weight", "exp_avg", "exp_avg_sq"} <= states.keys()
                assert {each.device for each in (parameter, *states.values())} == {here()}
            return stop

        set_accelerator(CUDA_Accelerator())  # it was looked for when DeepSpeed was imported
        device.backends = set(backends)
        patch.setattr(Trainer, "_update", looked_at)
        patch.setattr(Engine, "step", stepped)
        return main(arguments)
