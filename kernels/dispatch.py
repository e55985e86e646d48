"""One way in for every device, type and correction.

    projector = Projector(left_Ok, right_Ik, Factored(r_O, c_I))     # once per layer: folds, casts, checks
    rows_Bkk = projector.rows(delta_TO, a_TI, cu_seqlens)            # per batch

Shapes: T tokens of a packed sequence, B segments, O outputs, I inputs, kO x kI the projected gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import cpu
from .corrections import Correction, Factored, Full

INPUT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def _bounds(cu_seqlens: Tensor | Sequence[int], tokens: int) -> list[int]:
    bounds: list[int] = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
    if not bounds or bounds[0] < 0 or bounds[-1] > tokens or sorted(bounds) != bounds:
        raise ValueError(f"cu_seqlens must rise from 0 or more to at most the {tokens} tokens there are, got {bounds}")
    return bounds


class _Folded:
    """The factors of one layer in the type the products run in."""

    def __init__(self, left_Ok: Tensor, right_Ik: Tensor, correction: Correction | None, dtype: torch.dtype) -> None:
        left_Ok, right_Ik = left_Ok.float(), right_Ik.float()
        if isinstance(correction, Factored):
            left_Ok = left_Ok * correction.r_O.float()[:, None]
            right_Ik = right_Ik * correction.c_I.float()[:, None]
        self.left_Ok = left_Ok.to(dtype).contiguous()
        self.right_Ik = right_Ik.to(dtype).contiguous()
        self.w_OI = correction.w_OI.to(dtype).contiguous() if isinstance(correction, Full) else None


class Projector:
    """The projection of one linear layer's gradients, prepared once and used for every batch.

    Args:
        left_Ok: [O, kO] of +-1, for the output side (`signs`).
        right_Ik: [I, kI] of +-1, for the input side, on the same device.
        correction: None, `Full(w_OI)` or `Factored(r_O, c_I)`, on the same device.

    Raises:
        ValueError: shapes or devices do not fit together.
    """

    def __init__(self, left_Ok: Tensor, right_Ik: Tensor, correction: Correction | None = None) -> None:
        if left_Ok.ndim != 2 or right_Ik.ndim != 2:
            raise ValueError(f"left and right must be matrices, got {tuple(left_Ok.shape)} and {tuple(right_Ik.shape)}")
        self.left_Ok, self.right_Ik, self.correction = left_Ok, right_Ik, correction
        outputs, inputs = left_Ok.shape[0], right_Ik.shape[0]
        if isinstance(correction, Full) and correction.w_OI.shape != (outputs, inputs):
            raise ValueError(f"Full: w_OI must be [{outputs}, {inputs}], got {list(correction.w_OI.shape)}")
        if isinstance(correction, Factored) and (correction.r_O.shape, correction.c_I.shape) != ((outputs,), (inputs,)):
            got = f"{list(correction.r_O.shape)} and {list(correction.c_I.shape)}"
            raise ValueError(f"Factored: r_O must be [{outputs}] and c_I [{inputs}], got {got}")
        self._folded: dict[torch.dtype, _Folded] = {}

    def _factors(self, dtype: torch.dtype) -> _Folded:
        folded = self._folded.get(dtype)
        if folded is None:
            folded = self._folded[dtype] = _Folded(self.left_Ok, self.right_Ik, self.correction, dtype)
        return folded

    def rows(self, delta_TO: Tensor, a_TI: Tensor, cu_seqlens: Tensor | Sequence[int]) -> Tensor:
        """Projected gradients [B, kO, kI] float32 of the segments of one packed batch; see `project`."""
        if delta_TO.dtype != a_TI.dtype or delta_TO.dtype not in INPUT_TYPES:
            raise ValueError(f"delta and a must have one type of {INPUT_TYPES}, got {delta_TO.dtype} and {a_TI.dtype}")
        if delta_TO.shape != (a_TI.shape[0], self.left_Ok.shape[0]) or a_TI.shape[1] != self.right_Ik.shape[0]:
            expected = f"[T, {self.left_Ok.shape[0]}] and [T, {self.right_Ik.shape[0]}]"
            raise ValueError(f"delta and a must be {expected}, got {list(delta_TO.shape)} and {list(a_TI.shape)}")
        bounds = _bounds(cu_seqlens, a_TI.shape[0])
        if delta_TO.dtype == torch.float16:
            delta_TO, a_TI = delta_TO.float(), a_TI.float()
        factors = self._factors(delta_TO.dtype)
        if factors.w_OI is not None:
            return cpu.full_rows(delta_TO, a_TI, bounds, factors.left_Ok, factors.right_Ik, factors.w_OI)
        y_Tk = torch.mm(delta_TO, factors.left_Ok).float()
        z_Tk = torch.mm(a_TI, factors.right_Ik).float()
        return cpu.segment_products(y_Tk, z_Tk, bounds)


class SharedProjector:
    """The projections of several linear layers that read the same input (q, k and v; gate and up).

    Args:
        lefts: one [O_j, kO_j] per layer.
        rights: one [I, kI_j] per layer.
        corrections: one per layer, or None for none at all.
    """

    def __init__(
        self,
        lefts: Sequence[Tensor],
        rights: Sequence[Tensor],
        corrections: Sequence[Correction | None] | None = None,
    ) -> None:
        corrections = [None] * len(lefts) if corrections is None else corrections
        self.projectors = [Projector(*layer) for layer in zip(lefts, rights, corrections, strict=True)]

    def rows(self, deltas: Sequence[Tensor], a_TI: Tensor, cu_seqlens: Tensor | Sequence[int]) -> list[Tensor]:
        """One [B, kO_j, kI_j] float32 per layer."""
        return [p.rows(delta_TO, a_TI, cu_seqlens) for p, delta_TO in zip(self.projectors, deltas, strict=True)]


def project(
    delta_TO: Tensor,
    a_TI: Tensor,
    cu_seqlens: Tensor | Sequence[int],
    left_Ok: Tensor,
    right_Ik: Tensor,
    correction: Correction | None = None,
) -> Tensor:
    """Projects the gradient of a linear layer, segment by segment: left^T (delta_b^T a_b * W) right, not scaled.

    Args:
        delta_TO: [T, O] gradients at the layer's outputs; float32, bfloat16 or float16.
        a_TI: [T, I] inputs of the layer, of the same type.
        cu_seqlens: [B + 1] int32, where the segments begin and end. Tokens outside of them are ignored.
        left_Ok: [O, kO] of +-1.
        right_Ik: [I, kI] of +-1.
        correction: None (W = 1), `Full(w_OI)` or `Factored(r_O, c_I)`.

    Returns:
        [B, kO, kI] float32. An empty segment's row is zero.

    Raises:
        ValueError: shapes, types or bounds do not fit together.

    To project many batches of one layer make a `Projector` once: this function folds and casts anew each time.
    """
    return Projector(left_Ok, right_Ik, correction).rows(delta_TO, a_TI, cu_seqlens)


def project_shared(
    deltas: Sequence[Tensor],
    a_TI: Tensor,
    cu_seqlens: Tensor | Sequence[int],
    lefts: Sequence[Tensor],
    rights: Sequence[Tensor],
    corrections: Sequence[Correction | None] | None = None,
) -> list[Tensor]:
    """`project` for several layers with one input: one [B, kO_j, kI_j] per layer."""
    return SharedProjector(lefts, rights, corrections).rows(deltas, a_TI, cu_seqlens)
