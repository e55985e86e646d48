"""Plain-torch twins of the Triton kernels, launched as these are: `kernel[grid](arguments)`.

For what is around the kernels (which of them, with which tensors, in which grid) where Triton has no GPU. What the
kernels themselves compute is tested in Triton's interpreter, by `interpreted.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime._allocation import _allocator

from headwater.kernels import triton_factored, triton_full

GRID_LIMITS = (2**31 - 1, 65_535, 65_535)
"""CUDA's, for the x, y and z of a grid."""


_listed = Tensor.tolist  # a kernel reads its bounds itself; whoever counts what the host waits for is not told


class Launched:
    """A kernel's twin.

    Attributes:
        grids: that it was launched with.
    """

    def __init__(self, compute: Callable[..., None]) -> None:
        self.compute = compute
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < each <= limit for each, limit in zip(grid, GRID_LIMITS, strict=False)), f"no GPU takes {grid}"
        self.grids.append(grid)
        return self.compute


def spans(bounds_B: Tensor, tokens: int) -> list[tuple[int, int]]:
    assert bounds_B.dtype == torch.int32
    ends = [min(each, tokens) for each in _listed(bounds_B)]
    return list(pairwise(ends))


def full(
    delta: Tensor,
    a: Tensor,
    bounds: Tensor,
    left: Tensor,
    w_IO: Tensor,
    half: Tensor,
    tokens: int,
    *rest: Any,
    **options: Any,
) -> None:
    *_, outputs, _inputs, _segments, _group, per_program = rest
    if options["DESCRIPTORS"]:
        made = _allocator.get()(128, 16, None)
        assert made.device == a.device
    for b, (first, last) in enumerate(spans(bounds, tokens)):
        gradient_IO = (a[first:last].float().T @ delta[first:last].float()) * w_IO.float()
        for split in range(half.shape[0]):
            part = slice(split * per_program, min((split + 1) * per_program, outputs))
            half[split, b] = gradient_IO[:, part] @ left[part].float()


def finish(half: Tensor, right: Tensor, rows: Tensor, *_: Any, **__: Any) -> None:
    rows.copy_(half.sum(0).transpose(1, 2) @ right.float())


def thin(x: Tensor, factor: Tensor, result: Tensor, *_: Any, **__: Any) -> None:
    # In float64, so that a token's bits do not depend on how many there are: the kernel has an order of its own.
    result.copy_(x.double() @ factor.double())


def segment(y: Tensor, z: Tensor, bounds: Tensor, rows: Tensor, scale: float, tokens: int, *_: Any, **__: Any) -> None:
    for b, (first, last) in enumerate(spans(bounds, tokens)):
        rows[b] = scale * (y[first:last].T @ z[first:last])


def emulate(patch: pytest.MonkeyPatch) -> dict[str, Launched]:
    """Puts the twins in the kernels' places; returns them by name."""
    twins = {"full": Launched(full), "finish": Launched(finish), "thin": Launched(thin), "segment": Launched(segment)}
    patch.setattr(triton_full, "full_kernel", twins["full"])
    patch.setattr(triton_full, "finish_kernel", twins["finish"])
    patch.setattr(triton_factored, "thin_kernel", twins["thin"])
    patch.setattr(triton_factored, "segment_kernel", twins["segment"])
    return twins
