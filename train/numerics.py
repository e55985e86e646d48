"""How this process computes on a CPU: which library multiplies fp32 matrices, and how freed memory is kept."""

from __future__ import annotations

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def use_onednn() -> None:
    """Sends fp32 matrix products to oneDNN where that is faster and as exact; without effect on a GPU.

    On CPUs with AMX the same setting may round to bf16, so the accuracy is probed first.
    """
    if torch.cuda.is_available():
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 512, generator=generator), torch.randn(512, 64, generator=generator)
    exact = a.double() @ b.double()
    if float(((a @ b).double() - exact).abs().max() / exact.abs().max()) > 1e-5:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> None:
    """Lets glibc keep freed blocks: a training step frees and takes the same buffers, and fresh pages cost as much
    as the arithmetic on them. Does nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_TOP_PAD, 64 << 20)
