"""A stand-in for CUDA, which Megatron's pipeline schedules and its sequence parallelism name literally as a device: on
a machine without one, and only around those calls, the name is read as "cpu".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from headwater.train.compat import functions_left_plain

with functions_left_plain():
    from megatron.core.tensor_parallel import random as megatron_random


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@contextmanager
def _without_cuda() -> Iterator[None]:
    stubs: list[tuple[Any, str, Any]] = [
        (torch.cuda, "current_device", lambda: torch.device("cpu")),
        (torch.cuda, "synchronize", lambda *_, **__: None),
        # Recomputation saves and restores the generator of a device that is not there; nothing draws from it.
        (megatron_random, "_get_cuda_rng_state", lambda *_, **__: None),
        (megatron_random, "_set_cuda_rng_state", lambda *_, **__: None),
    ]
    before = [getattr(owner, name) for owner, name, _ in stubs]
    for owner, name, stub in stubs:
        setattr(owner, name, stub)
    try:
        with _CudaMeansCpu():
            yield
    finally:
        for (owner, name, _), original in zip(stubs, before, strict=True):
            setattr(owner, name, original)


def megatron_context() -> Any:
    """The context for Megatron's pipeline schedules and sequence-parallel collectives: nothing on a GPU; elsewhere the
    device they name is read as the CPU."""
    return nullcontext() if torch.cuda.is_available() else _without_cuda()
