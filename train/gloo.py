"""One socket loop for all of a process's gloo groups.

PyTorch gives each group a device of its own, whose thread wakes a hundred times a second; Megatron makes some thirty
groups, so that an idle process would take 3% of a core, and a process that has left several jobs a third.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Any

import torch.distributed.distributed_c10d as c10d


@functools.cache
def share_devices() -> None:
    """From now on this process's gloo groups share their devices; does nothing where PyTorch's own names are gone.

    The names are those of torch 2.13; `GLOO_SOCKET_IFNAME` is honoured as PyTorch does.
    """
    original: Any = getattr(c10d, "ProcessGroupGloo", None)
    options_class: Any = getattr(original, "_Options", None)
    if options_class is None or not hasattr(options_class(), "_devices"):
        return

    @functools.cache
    def devices() -> list[Any]:
        names = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
        made = [original.create_device(interface=name) for name in names]
        return made or [original.create_default_device()]

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=devices.cache_clear)  # a child has none of its parent's threads

    class SharedProcessGroupGloo(original):  # type: ignore[misc]
        """A group on the process's devices."""

        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            options = options_class()
            options._devices, options._timeout = devices(), timeout
            super().__init__(store, rank, size, options)

    c10d.ProcessGroupGloo = SharedProcessGroupGloo  # type: ignore[misc]
