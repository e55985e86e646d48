"""Products with a thin side, compiled for this machine's CPU.

Projections and segment products have a result that is 16 to 64 wide. BLAS libraries are made for wide ones: their
packing costs more than such a product, and rows of a power of two lie where they push each other out of the first
cache. Here the sums of a tile of a few rows and columns stay in registers while both operands stream by once, and the
next rows are fetched in the meantime. thin_code.py generates the code.

Every entry of a result is summed by itself, over steps 0, 1, 2, ... in chunks of `CHUNK`: its bits depend on its own
row and column alone, not on what is computed beside it nor on the number of threads.

bf16 is multiplied two steps at a time where the CPU has an instruction for it (AVX512-BF16), else as float32; sums are
float32 either way.

Shapes: T tokens, K summed entries, k columns, B segments, kO x kI the projected gradient.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import thin_code
from .thin_code import ENTRY, LANES

__all__ = ["LANES", "pack", "product", "segment_products"]

THREAD_WORK = 1 << 21
"""Least multiplications that are worth a thread."""


def pack(factor_Kk: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor as `product` reads it, for inputs of a type; k is a multiple of `LANES`.

    Returns:
        [K, k] float32, or, for bf16 inputs where the CPU multiplies them, [K / 2, k, 2] bf16: the rows in pairs.
    """
    if dtype != torch.bfloat16 or not thin_code.has("avx512bf16"):
        return factor_Kk.float().contiguous()
    factor_Kk = factor_Kk.to(torch.bfloat16)
    return pad(factor_Kk, (0, 0, 0, len(factor_Kk) % 2)).unflatten(0, (-1, 2)).transpose(1, 2).contiguous()


def product(x_TK: Tensor, packed: Tensor, out_Tk: Tensor | None = None) -> Tensor:
    """x factor, [T, k] float32; x float32 or bf16, the factor from `pack`, and out contiguous."""
    tokens, steps, columns = len(x_TK), len(packed), packed.shape[1]
    if packed.dtype == torch.float32:
        x_TK = x_TK.float()
    elif x_TK.shape[1] % 2:
        x_TK = pad(x_TK, (0, 1))
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    result_Tk = torch.empty(tokens, columns) if out_Tk is None else out_Tk
    x_row = x_TK.stride(0) * x_TK.element_size()
    for first, width in _pieces(columns):
        run = thin_code.compiled(width, packed.dtype).product

        def rows(start: int, stop: int, first: int = first, run: Callable[..., None] = run) -> None:
            x = x_TK.data_ptr() + start * x_row
            factor = packed.data_ptr() + first * ENTRY
            out = result_Tk.data_ptr() + (start * columns + first) * ENTRY
            run(x, x_row, ENTRY, factor, columns * ENTRY, out, columns * ENTRY, stop - start, steps)

        _share_out(tokens, steps * width, rows)
    return result_Tk


def segment_products(y_Tk: Tensor, z_Tk: Tensor, bounds: list[int]) -> Tensor:
    """[B, kO, kI] float32: y_b^T z_b, from float32, for the segments between bounds; kI is a multiple of `LANES`."""
    segments, kO, kI = len(bounds) - 1, y_Tk.shape[1], z_Tk.shape[1]
    rows_Bkk = torch.empty(segments, kO, kI)
    starts = torch.tensor(bounds)
    tokens = (bounds[-1] - bounds[0]) // max(1, segments)
    y_row, z_row = y_Tk.stride(0) * ENTRY, z_Tk.stride(0) * ENTRY
    for first, width in _pieces(kI):
        run = thin_code.compiled(width, torch.float32).segments

        def some(start: int, stop: int, first: int = first, run: Callable[..., None] = run) -> None:
            where = starts.data_ptr() + start * starts.element_size()
            z = z_Tk.data_ptr() + first * ENTRY
            out = rows_Bkk.data_ptr() + (start * kO * kI + first) * ENTRY
            run(y_Tk.data_ptr(), y_row, z, z_row, where, stop - start, out, kO, kI * ENTRY)

        _share_out(segments, tokens * kO * width, some)
    return rows_Bkk


def _pieces(columns: int) -> list[tuple[int, int]]:
    """First column and width of each tile."""
    _, widest = thin_code.tile()
    return [(first, min(widest, columns - first)) for first in range(0, columns, widest)]


def _share_out(count: int, work: int, run: Callable[[int, int], None]) -> None:
    """Calls run(start, stop) for parts of 0..count, each of `work` multiplications, in threads if that pays."""
    threads = min(torch.get_num_threads(), max(1, count * work // THREAD_WORK))
    if threads == 1:
        run(0, count)
        return
    share = -(-count // threads)
    others = [_threads().submit(run, start, min(start + share, count)) for start in range(share, count, share)]
    run(0, min(share, count))
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "headwater-thin")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads
