"""One way in for every device, type and correction.

    projector = Projector(left_Ok, right_Ik, Factored(r_O, c_I))     # once per layer: checks, folds, casts
    rows_Bkk = projector.rows(delta_TO, a_TI, cu_seqlens)            # per batch

Shapes: T tokens of a packed sequence, B segments, O outputs, I inputs, kO x kI the projected gradient.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import cpu
from .corrections import Correction, Layer

if TYPE_CHECKING:
    from . import gpu

INPUT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def _host_bounds(cu_seqlens: Tensor | Sequence[int], tokens: int) -> list[int]:
    bounds: list[int] = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
    if not bounds or bounds[0] < 0 or bounds[-1] > tokens or sorted(bounds) != bounds:
        raise ValueError(f"cu_seqlens must rise from 0 or more to at most the {tokens} tokens there are, got {bounds}")
    return bounds


def _device_bounds(cu_seqlens: Tensor | Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """int32 on the device. Bounds that are there already are not checked, which would wait for the GPU."""
    if isinstance(cu_seqlens, Tensor) and cu_seqlens.device == device:
        return cu_seqlens.to(torch.int32)
    return torch.tensor(_host_bounds(cu_seqlens, tokens), dtype=torch.int32).to(device, non_blocking=True)


class SharedProjector:
    """The projections of several linear layers that read the same input (q, k and v; gate and up), prepared once.

    Args:
        lefts: one [O_j, kO_j] of +-1 per layer, for the output side (`signs`).
        rights: one [I, kI_j] of +-1 per layer, for the input side. Pass one tensor to several layers and its product
            with the inputs is made once.
        corrections: one per layer, or None for none at all.

    The factors are folded and cast at the first batch of a type and kept: a later change of the tensors is not seen.

    Raises:
        ValueError: shapes or devices do not fit together.
    """

    def __init__(
        self,
        lefts: Sequence[Tensor],
        rights: Sequence[Tensor],
        corrections: Sequence[Correction | None] | None = None,
    ) -> None:
        corrections = [None] * len(lefts) if corrections is None else corrections
        if not len(lefts) == len(rights) == len(corrections) > 0:
            counts = f"{len(lefts)}, {len(rights)} and {len(corrections)}"
            raise ValueError(f"lefts, rights and corrections must be one per layer, got {counts} of them")
        self.layers = [Layer(*parts) for parts in zip(lefts, rights, corrections, strict=True)]
        self.inputs = rights[0].shape[0]
        if any(right_Ik.shape[0] != self.inputs for right_Ik in rights):
            raise ValueError(f"layers that share an input have rights of one height, got {[len(r) for r in rights]}")
        self.device = lefts[0].device
        if any(layer.left_Ok.device != self.device for layer in self.layers):
            raise ValueError(f"layers that share an input are on one device, got {[str(x.device) for x in lefts]}")
        self._cpu: dict[torch.dtype, cpu.Group] = {}
        self._gpu: dict[torch.dtype, gpu.Group] = {}

    @torch.no_grad()
    def rows(self, deltas: Sequence[Tensor], a_TI: Tensor, cu_seqlens: Tensor | Sequence[int]) -> list[Tensor]:
        """Projected gradients of the segments of one packed batch; arguments and errors as in `project_shared`."""
        self._check(deltas, a_TI)
        dtype, tokens = a_TI.dtype, a_TI.shape[0]
        if self.device.type == "cpu":
            if dtype not in self._cpu:
                self._cpu[dtype] = cpu.Group(self.layers, dtype)
            return self._cpu[dtype].rows(deltas, a_TI, _host_bounds(cu_seqlens, tokens))
        if dtype not in self._gpu:
            from . import gpu

            self._gpu[dtype] = gpu.Group(self.layers, dtype)
        return self._gpu[dtype].rows(deltas, a_TI, _device_bounds(cu_seqlens, tokens, self.device))

    def _check(self, deltas: Sequence[Tensor], a_TI: Tensor) -> None:
        if len(deltas) != len(self.layers):
            raise ValueError(f"there are {len(self.layers)} layers, got deltas for {len(deltas)}")
        if a_TI.dtype not in INPUT_TYPES:
            raise ValueError(f"a must be one of {INPUT_TYPES}, got {a_TI.dtype}")
        if a_TI.ndim != 2 or a_TI.shape[1] != self.inputs:
            raise ValueError(f"a must be [T, {self.inputs}], got {list(a_TI.shape)}")
        for delta_TO, layer in zip(deltas, self.layers, strict=True):
            if delta_TO.shape != (a_TI.shape[0], layer.left_Ok.shape[0]):
                expected = [a_TI.shape[0], layer.left_Ok.shape[0]]
                raise ValueError(f"delta must be {expected}, got {list(delta_TO.shape)}")
            if delta_TO.dtype != a_TI.dtype or delta_TO.device != a_TI.device or a_TI.device != self.device:
                got = f"{delta_TO.dtype} on {delta_TO.device} and {a_TI.dtype} on {a_TI.device}"
                raise ValueError(f"delta and a must have one type and be on {self.device} with the factors, got {got}")


class Projector:
    """The projection of one linear layer's gradients, prepared once and used for every batch; see `SharedProjector`.

    Args:
        left_Ok: [O, kO] of +-1, for the output side (`signs`).
        right_Ik: [I, kI] of +-1, for the input side, on the same device.
        correction: None, `Full(w_OI)` or `Factored(r_O, c_I)`, on the same device.

    Raises:
        ValueError: shapes or devices do not fit together.
    """

    def __init__(self, left_Ok: Tensor, right_Ik: Tensor, correction: Correction | None = None) -> None:
        self._shared = SharedProjector([left_Ok], [right_Ik], [correction])

    def rows(self, delta_TO: Tensor, a_TI: Tensor, cu_seqlens: Tensor | Sequence[int]) -> Tensor:
        """Projected gradients [B, kO, kI] float32 of the segments of one packed batch; see `project`."""
        return self._shared.rows([delta_TO], a_TI, cu_seqlens)[0]


def project(
    delta_TO: Tensor,
    a_TI: Tensor,
    cu_seqlens: Tensor | Sequence[int],
    left_Ok: Tensor,
    right_Ik: Tensor,
    correction: Correction | None = None,
) -> Tensor:
    """Projects the gradient of a linear layer, segment by segment: left^T (delta_b^T a_b * W) right, without a scale.

    Args:
        delta_TO: [T, O] gradients at the layer's outputs; float32, bfloat16 or float16.
        a_TI: [T, I] inputs of the layer, of the same type.
        cu_seqlens: [B + 1] int32 (or a list), where the segments begin and end. Tokens outside of them are ignored.
            Bounds that are on a GPU already are used unchecked, so that nothing waits.
        left_Ok: [O, kO] of +-1.
        right_Ik: [I, kI] of +-1.
        correction: None (W = 1), `Full(w_OI)` or `Factored(r_O, c_I)`.

    Returns:
        [B, kO, kI] float32. An empty segment's row is zero.

    Raises:
        ValueError: shapes, types, devices or bounds do not fit together.

    To project many batches of one layer make a `Projector` once: this function checks, folds and casts anew each time.
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
    """`project` for several layers with one input: one [B, kO_j, kI_j] float32 per layer.

    Args:
        deltas: one [T, O_j] per layer.
        a_TI: [T, I], the input they share.
        cu_seqlens: [B + 1] int32.
        lefts, rights, corrections: one per layer, as for `SharedProjector`.
    """
    return SharedProjector(lefts, rights, corrections).rows(deltas, a_TI, cu_seqlens)
