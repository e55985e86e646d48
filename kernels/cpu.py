"""The projection on a CPU.

Without an elementwise correction a row is (D_b P_L)^T (A_b P_R): two thin products over all tokens of the batch, then
one small product per segment. With one, the gradient D_b^T A_b of a segment is made tile by tile, multiplied and
contracted from the right, and what is left of it from the left. cpu_products.py makes them all.

Shapes: T tokens of a packed sequence, B segments, O outputs, I inputs, kO x kI the projected gradient, K columns of
stacked right projections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .corrections import Full, Layer, pad_columns, shared_rights
from .cpu_products import LANES, pack, product, segment_products, tiles, weighted_gradients


@dataclass(slots=True)
class _FullLayer:
    """A layer with an elementwise correction; left and right have zeros behind their last row, up to whole tiles."""

    left_Ok: Tensor
    right_Ik: Tensor
    w_tiles: Tensor

    def rows(self, delta_TO: Tensor, a_TI: Tensor, bounds: list[int]) -> Tensor:
        """[B, kO, kI]."""
        half_BOk = weighted_gradients(delta_TO, a_TI, self.w_tiles, self.right_Ik, bounds)
        outputs = half_BOk.shape[1]
        each = [b * outputs for b in range(len(bounds))]
        return segment_products(self.left_Ok, half_BOk.flatten(0, 1), each, one_y=True)


class Group:
    """Layers that share an input, prepared for inputs of one type."""

    def __init__(self, layers: list[Layer], dtype: torch.dtype) -> None:
        """Folds and casts; `dtype` is float32 or bfloat16 (float16 runs as float32: CPUs have no products for it)."""
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        self.sides = [layer.sides for layer in layers]
        self.full = {i: self._full(layer) for i, layer in enumerate(layers) if isinstance(layer.correction, Full)}
        self.thin = [i for i in range(len(layers)) if i not in self.full]
        if self.thin:
            right_IK, self.columns = shared_rights([layers[i] for i in self.thin], LANES)
            self.right = pack(right_IK, self.dtype)
            self.lefts = [pack(pad_columns(layers[i].fold_left(), LANES), self.dtype) for i in self.thin]

    @staticmethod
    def _full(layer: Layer) -> _FullLayer:
        assert isinstance(layer.correction, Full)
        w_tiles = tiles(layer.correction.w_OI)
        panels, strips, rows, width = w_tiles.shape
        left_Ok, right_Ik = (pad_columns(side.float(), LANES) for side in (layer.left_Ok, layer.right_Ik))
        left_Ok = pad(left_Ok, (0, 0, 0, strips * rows - len(left_Ok)))
        right_Ik = pad(right_Ik, (0, 0, 0, panels * width - len(right_Ik)))
        return _FullLayer(left_Ok.contiguous(), right_Ik.contiguous(), w_tiles)

    def rows(self, deltas: Sequence[Tensor], a_TI: Tensor, bounds: list[int]) -> list[Tensor]:
        """One [B, kO, kI] float32 per layer."""
        window = slice(bounds[0], bounds[-1])
        a_TI = a_TI[window].to(self.dtype)
        deltas = [delta_TO[window].to(self.dtype) for delta_TO in deltas]
        bounds = [bound - bounds[0] for bound in bounds]
        rows = {i: layer.rows(deltas[i], a_TI, bounds) for i, layer in self.full.items()}
        if self.thin:
            z_TK = product(a_TI, self.right)
            for i, columns, left in zip(self.thin, self.columns, self.lefts, strict=True):
                rows[i] = segment_products(product(deltas[i], left), z_TK[:, columns], bounds)
        return [rows[i][:, :kO, :kI].contiguous() for i, (kO, kI) in enumerate(self.sides)]
