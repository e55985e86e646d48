"""The matrix products of the projection on a CPU, by code compiled for the CPU at hand (cpu_code.py).

Their results are 16 to 64 wide, or are needed only to be multiplied and contracted. BLAS libraries are made for others:
their packing costs more than a thin product, and rows of a power of two lie where they push each other out of the first
cache. Here the sums of a tile of a few rows and columns stay in registers while both operands stream by once.

Every entry of a result is summed by itself, over steps 0, 1, 2, ... in chunks of a fixed length: its bits depend on its
own row and column alone, not on what is computed beside it nor on the number of threads.

bf16 is multiplied two steps at a time where the CPU has an instruction for it (AVX512-BF16), else as float32; sums are
float32 either way.

Shapes: T tokens, O outputs, I inputs, K summed entries, k columns, B segments, kO x kI the projected gradient.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import cpu_code
from .cpu_code import ENTRY, LANES

__all__ = ["LANES", "pack", "product", "segment_products", "share_out", "tiles", "weighted_gradients"]

THREAD_WORK = 1 << 21
"""Least multiplications that are worth a thread."""
PACKED = 1 << 19
"""Bytes of output gradients that are laid out anew at a time: half of a second cache."""
TOGETHER = 128
"""Tokens of short segments that share a reading of the elementwise factors: their inputs stay in the first cache."""


def pack(factor_Kk: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor as `product` reads it, for inputs of a type; k is a multiple of `LANES`.

    Returns:
        [K, k] float32, or, for bf16 inputs where the CPU multiplies them, [K / 2, k, 2] bf16: the rows in pairs.
    """
    if _multiplied_as(dtype) == torch.float32:
        return factor_Kk.float().contiguous()
    factor_Kk = factor_Kk.to(torch.bfloat16)
    return pad(factor_Kk, (0, 0, 0, len(factor_Kk) % 2)).unflatten(0, (-1, 2)).transpose(1, 2).contiguous()


def product(x_TK: Tensor, packed: Tensor) -> Tensor:
    """x factor, [T, k] float32; x float32 or bf16, the factor from `pack`."""
    tokens, steps, columns = len(x_TK), len(packed), packed.shape[1]
    x_TK = _readable(x_TK, packed.dtype)
    if packed.dtype == torch.bfloat16 and x_TK.shape[1] % 2:
        x_TK = pad(x_TK, (0, 1))
    result_Tk = torch.empty(tokens, columns)
    x_row = _row_bytes(x_TK)
    for first, width in _pieces(columns):
        run = cpu_code.compiled("product", width, packed.dtype)

        def rows(start: int, stop: int, first: int = first, run: Callable[..., None] = run) -> None:
            x = x_TK.data_ptr() + start * x_row
            factor = packed.data_ptr() + first * ENTRY
            out = result_Tk.data_ptr() + (start * columns + first) * ENTRY
            run(x, x_row, ENTRY, factor, columns * ENTRY, out, columns * ENTRY, stop - start, steps)

        share_out(tokens, steps * width, rows)
    return result_Tk


def segment_products(y_Tk: Tensor, z_Tk: Tensor, bounds: list[int], *, one_y: bool = False) -> Tensor:
    """[B, kO, kI] float32: y_b^T z_b, from float32, for the segments between bounds; kI is a multiple of `LANES`.

    With `one_y` every segment has the first rows of y as its own.
    """
    segments, kO, kI = len(bounds) - 1, y_Tk.shape[1], z_Tk.shape[1]
    rows_Bkk = torch.empty(segments, kO, kI)
    starts = torch.tensor(bounds)
    tokens = (bounds[-1] - bounds[0]) // max(1, segments)
    y_row, z_row = _row_bytes(y_Tk), _row_bytes(z_Tk)
    y_move = 0 if one_y else y_row
    for first, width in _pieces(kI):
        run = cpu_code.compiled("segments", width, torch.float32)

        def some(start: int, stop: int, first: int = first, run: Callable[..., None] = run) -> None:
            where = starts.data_ptr() + start * starts.element_size()
            z = z_Tk.data_ptr() + first * ENTRY
            out = rows_Bkk.data_ptr() + (start * kO * kI + first) * ENTRY
            run(y_Tk.data_ptr(), y_row, y_move, z, z_row, where, stop - start, out, kO, kI * ENTRY)

        share_out(segments, tokens * kO * width, some)
    return rows_Bkk


def tiles(w_OI: Tensor) -> Tensor:
    """Elementwise factors as `weighted_gradients` reads them, with zeros behind the last.

    Returns:
        [panels of columns, strips of rows, rows, columns] float32.
    """
    rows, width = cpu_code.tile()
    w_OI = pad(w_OI.float(), (0, -w_OI.shape[1] % width, 0, -w_OI.shape[0] % rows))
    return w_OI.unflatten(1, (-1, width)).unflatten(0, (-1, rows)).permute(2, 0, 1, 3).contiguous()


def weighted_gradients(delta_TO: Tensor, a_TI: Tensor, w_tiles: Tensor, right_Ik: Tensor, bounds: list[int]) -> Tensor:
    """(delta_b^T a_b * w) right for the segments between bounds; their gradients are never in memory as a whole.

    Args:
        delta_TO, a_TI: float32 or bf16, both the same.
        w_tiles: from `tiles`.
        right_Ik: contiguous float32, with rows of zeros up to the last panel; k is a multiple of `LANES`.
        bounds: B + 1 numbers that rise.

    Returns:
        [B, O', k] float32; O' is O up to a whole strip, and what is behind O is zero.
    """
    _, strips, rows, width = w_tiles.shape
    dtype = _multiplied_as(a_TI.dtype)
    delta_TO, a_TI = _readable(delta_TO, dtype), _readable(a_TI, dtype)
    half_BOk = torch.zeros(len(bounds) - 1, strips * rows, right_Ik.shape[1])
    run = cpu_code.compiled("gradient", width, dtype)
    for first, last in _together(bounds):
        _some_gradients(run, delta_TO, a_TI, w_tiles, right_Ik, bounds[first : last + 1], half_BOk[first:last])
    return half_BOk


def _together(bounds: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of segments for which w is read once: as many as have `TOGETHER` tokens, or one that has more."""
    first = 0
    for b in range(1, len(bounds)):
        if b + 1 == len(bounds) or bounds[b + 1] - bounds[first] > TOGETHER:
            yield first, b
            first = b


def _some_gradients(
    run: Callable[..., None],
    delta_TO: Tensor,
    a_TI: Tensor,
    w_tiles: Tensor,
    right_Ik: Tensor,
    bounds: list[int],
    half_BOk: Tensor,
) -> None:
    """A few segments, one after the other for each tile of w."""
    _, strips, rows, width = w_tiles.shape
    tokens, outputs, inputs, columns = bounds[-1] - bounds[0], delta_TO.shape[1], a_TI.shape[1], half_BOk.shape[2]
    per_step = ENTRY // a_TI.element_size()
    places = [0, *accumulate(-(-(last - first) // per_step) for first, last in pairwise(bounds))]
    where = torch.tensor([bounds, places])
    starts, ends = where.data_ptr(), where.data_ptr() + len(bounds) * where.element_size()
    tile_bytes, half_move = rows * width * ENTRY, strips * rows * columns * ENTRY
    # The strips' results stay in the second cache too, from one panel to the next.
    together = max(4, PACKED // (rows * ENTRY * max(1, tokens, columns * len(half_BOk))))

    def some(start: int, stop: int) -> None:
        scratch = torch.empty(rows * width + places[-1] * (width + min(together, stop - start) * rows))
        for strip in range(start, stop, together):
            output = strip * rows
            delta = delta_TO.data_ptr() + output * delta_TO.element_size()
            count = min(min(together, stop - strip) * rows, outputs - output)
            w = w_tiles.data_ptr() + strip * tile_bytes
            half = half_BOk.data_ptr() + output * columns * ENTRY
            run(
                *(delta, _row_bytes(delta_TO), count, a_TI.data_ptr(), _row_bytes(a_TI), inputs),
                *(starts, ends, len(bounds) - 1, w, strips * tile_bytes, right_Ik.data_ptr()),
                *(half, half_move, columns, scratch.data_ptr()),
            )

    share_out(strips, rows * tokens * inputs, some)


def _multiplied_as(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.bfloat16 and cpu_code.has("avx512bf16") else torch.float32


def _readable(x_TK: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type that is multiplied, with adjacent columns."""
    x_TK = x_TK.to(dtype)
    return x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()


def _row_bytes(x_TK: Tensor) -> int:
    return x_TK.stride(0) * x_TK.element_size()


def _pieces(columns: int) -> list[tuple[int, int]]:
    """First column and width of each tile."""
    _, widest = cpu_code.tile()
    return [(first, min(widest, columns - first)) for first in range(0, columns, widest)]


def share_out(count: int, work: int, run: Callable[[int, int], None]) -> None:
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
    return ThreadPoolExecutor(os.cpu_count(), "headwater-products")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads
