"""The projection on a CPU.

Without an elementwise correction a row is (D_b P_L)^T (A_b P_R): two thin products over all tokens of the batch, then
one small product per segment; thin.py makes both. With one, the gradient D_b^T A_b of each segment is made in a buffer
that all segments reuse, multiplied in place and contracted, from the right and then from the left.

A segment's row must not depend, to the last bit, on what it is packed with: thin products are summed entry by entry,
and the shapes of the others depend on the segment alone.

Shapes: T tokens of a packed sequence, B segments, O outputs, I inputs, kO x kI the projected gradient, K columns of
stacked right projections, S tokens of one segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from . import thin
from .corrections import Full, Layer, pad_columns, shared_rights

GRADIENT_BLOCK = 1 << 20
"""Entries of a gradient block: what the elementwise product rereads should still be in the cache."""
ONEDNN_SEGMENT = 32


@dataclass(slots=True)
class _FullLayer:
    left_Ok: Tensor
    right_Ik: Tensor
    w_OI: Tensor

    def row(self, delta_SO: Tensor, a_SI: Tensor, block_OI: Tensor, low_OI: Tensor | None) -> Tensor:
        """[kO, kI]: left^T (delta^T a * w) right; `low_OI` takes the gradient of bf16 inputs."""
        outputs, step = self.w_OI.shape[0], block_OI.shape[0]
        half_Ok = torch.empty(outputs, self.right_Ik.shape[1])
        for first in range(0, outputs, step):
            last = min(first + step, outputs)
            gradient_OI = block_OI[: last - first]
            if low_OI is None:
                torch.mm(delta_SO[:, first:last].T, a_SI, out=gradient_OI)
            else:
                gradient_OI.copy_(torch.mm(delta_SO[:, first:last].T, a_SI, out=low_OI[: last - first]))
            gradient_OI.mul_(self.w_OI[first:last])
            thin.product(gradient_OI, self.right_Ik, out_Tk=half_Ok[first:last])
        return thin.segment_products(self.left_Ok, half_Ok, [0, outputs])[0]


def _pad_tokens(x_SK: Tensor, multiple: int) -> Tensor:
    padded_SK = x_SK.new_zeros(-(-x_SK.shape[0] // multiple) * multiple, x_SK.shape[1])
    padded_SK[: x_SK.shape[0]] = x_SK
    return padded_SK


class Group:
    """Layers that share an input, prepared for inputs of one type."""

    def __init__(self, layers: list[Layer], dtype: torch.dtype) -> None:
        """Folds and casts; `dtype` is float32 or bfloat16 (float16 runs as float32: CPUs have no products for it)."""
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        self.sides = [layer.sides for layer in layers]
        self.full = {i: self._full(layer) for i, layer in enumerate(layers) if isinstance(layer.correction, Full)}
        self.thin = [i for i in range(len(layers)) if i not in self.full]
        if self.thin:
            right_IK, self.columns = shared_rights([layers[i] for i in self.thin], thin.LANES)
            self.right = thin.pack(right_IK, self.dtype)
            self.lefts = [thin.pack(pad_columns(layers[i].fold_left(), thin.LANES), self.dtype) for i in self.thin]

    @staticmethod
    def _full(layer: Layer) -> _FullLayer:
        assert isinstance(layer.correction, Full)
        w_OI = layer.correction.w_OI.float().contiguous()
        sides = (layer.left_Ok, layer.right_Ik)
        left_Ok, right_Ik = (thin.pack(pad_columns(side, thin.LANES), torch.float32) for side in sides)
        return _FullLayer(left_Ok, right_Ik, w_OI)

    def rows(self, deltas: Sequence[Tensor], a_TI: Tensor, bounds: list[int]) -> list[Tensor]:
        """One [B, kO, kI] float32 per layer."""
        window = slice(bounds[0], bounds[-1])
        a_TI = a_TI[window].to(self.dtype)
        deltas = [delta_TO[window].to(self.dtype) for delta_TO in deltas]
        bounds = [bound - bounds[0] for bound in bounds]
        rows: dict[int, Tensor] = {}
        if self.thin:
            z_TK = thin.product(a_TI, self.right)
            for i, columns, left in zip(self.thin, self.columns, self.lefts, strict=True):
                rows[i] = thin.segment_products(thin.product(deltas[i], left), z_TK[:, columns], bounds)
        if self.full:
            rows |= self._full_rows(deltas, a_TI, bounds)
        return [rows[i][:, :kO, :kI].contiguous() for i, (kO, kI) in enumerate(self.sides)]

    def _full_rows(self, deltas: Sequence[Tensor], a_TI: Tensor, bounds: list[int]) -> dict[int, Tensor]:
        inputs = a_TI.shape[1]
        widest = max(layer.w_OI.shape[0] for layer in self.full.values())
        block_OI = torch.empty(min(widest, max(256, GRADIENT_BLOCK // max(1, inputs))), inputs)
        low_OI = torch.empty_like(block_OI, dtype=self.dtype) if self.dtype != torch.float32 else None
        # oneDNN compiles a kernel per segment length as well, so where it does the product lengths are rounded up.
        onednn = low_OI is not None or torch.get_float32_matmul_precision() != "highest"
        rows = {
            i: torch.zeros(len(bounds) - 1, layer.left_Ok.shape[1], layer.right_Ik.shape[1])
            for i, layer in self.full.items()
        }
        for b, (first, last) in enumerate(pairwise(bounds)):
            pad = onednn and (last - first) % ONEDNN_SEGMENT
            a_SI = _pad_tokens(a_TI[first:last], ONEDNN_SEGMENT) if pad else a_TI[first:last]
            for i, layer in self.full.items() if last > first else ():
                delta_SO = deltas[i][first:last]
                delta_SO = _pad_tokens(delta_SO, ONEDNN_SEGMENT) if pad else delta_SO
                rows[i][b] = layer.row(delta_SO, a_SI, block_OI, low_OI)
        return rows
