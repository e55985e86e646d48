"""The projection on a CPU, from the matrix products of PyTorch.

Without an elementwise correction a row is (D_b P_L)^T (A_b P_R): two thin products over all tokens of the batch, then
one small product per segment. With one, the gradient D_b^T A_b of each segment is made in a buffer that all segments
reuse, multiplied in place and contracted from the narrower side.

A segment's row must not depend, to the last bit, on what it is packed with. The thin products run over at least
`TOKEN_TILE` tokens (BLAS libraries take another path, with another order of summation, only for very few rows), and the
shapes of all other products depend on the segment alone; the sides are padded to a multiple of `SIDE`, since MKL's
order of summation depends on the alignment of shorter rows.

Shapes: T tokens of a packed sequence, B segments, O outputs, I inputs, kO x kI the projected gradient, K columns of
stacked right projections, S tokens of one segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .corrections import Full, Layer, pad_columns, shared_rights

TOKEN_TILE = 64
SIDE = 8
GRADIENT_BLOCK = 1 << 20
"""Entries of a gradient block: what the elementwise product rereads should still be in the cache."""
ONEDNN_SEGMENT = 32

# PyTorch sends float32 products to MKL, whose packing costs more than the product when one side is 16 to 64 wide; this
# operation (the one behind compiled linear layers) sends it to oneDNN and keeps full precision on every CPU, which
# `set_float32_matmul_precision("medium")` does not.
_onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _thin(x_TK: Tensor, factor_kK: Tensor) -> Tensor:
    if x_TK.dtype == torch.float32 and _onednn_linear is not None:
        return _onednn_linear(x_TK, factor_kK, None, "none", [], "")
    return torch.mm(x_TK, factor_kK.T)


def token_products(x_TK: Tensor, factor_kK: Tensor) -> Tensor:
    """[T, k] float32: x factor^T, with bits that do not depend on T.

    oneDNN compiles a kernel for every number of tokens it meets. So the tokens go in as a multiple of `TOKEN_TILE`, and
    those left over as the last `TOKEN_TILE`, some of them for the second time.
    """
    tokens = x_TK.shape[0]
    if tokens == 0:
        return x_TK.new_zeros(0, factor_kK.shape[0], dtype=torch.float32)
    if tokens % TOKEN_TILE == 0:
        return _thin(x_TK, factor_kK).float()
    if tokens < TOKEN_TILE:
        padded_TK = x_TK.new_zeros(TOKEN_TILE, x_TK.shape[1])
        padded_TK[:tokens] = x_TK
        return _thin(padded_TK, factor_kK)[:tokens].float()
    result_Tk = torch.empty(tokens, factor_kK.shape[0], dtype=torch.float32)
    whole = tokens - tokens % TOKEN_TILE
    result_Tk[:whole] = _thin(x_TK[:whole], factor_kK)
    result_Tk[-TOKEN_TILE:] = _thin(x_TK[-TOKEN_TILE:], factor_kK)
    return result_Tk


def segment_products(y_Tk: Tensor, z_Tk: Tensor, lengths: list[int]) -> Tensor:
    """[B, kO, kI] float32: y_b^T z_b for segments of these lengths, one behind the other."""
    segments, kO, kI = len(lengths), y_Tk.shape[1], z_Tk.shape[1]
    if segments == 0:
        return torch.zeros(0, kO, kI)
    # In MKL, with sides that are multiples of `SIDE`, one batched product has the bits of single ones.
    batched = torch.get_float32_matmul_precision() == "highest"
    if batched and segments > 1 and lengths[0] > 0 and lengths.count(lengths[0]) == segments:
        shape = (segments, lengths[0], -1)
        return torch.bmm(y_Tk.unflatten(0, shape[:2]).mT, z_Tk.unflatten(0, shape[:2]))
    rows_Bkk = torch.zeros(segments, kO, kI)
    pieces = zip(y_Tk.T.split(lengths, 1), z_Tk.split(lengths), rows_Bkk.unbind(), strict=True)
    for y_kS, z_Sk, row_kk in pieces:
        if z_Sk.shape[0]:
            torch.mm(y_kS, z_Sk, out=row_kk)
    return rows_Bkk


@dataclass(slots=True)
class _FullLayer:
    left_Ok: Tensor
    right_Ik: Tensor
    w_OI: Tensor

    def row(self, delta_SO: Tensor, a_SI: Tensor, block_OI: Tensor, low_OI: Tensor | None, row_kk: Tensor) -> None:
        """Writes left^T (delta^T a * w) right to `row_kk`; `low_OI` takes the gradient of bf16 inputs."""
        outputs, step = self.w_OI.shape[0], block_OI.shape[0]
        right_first = self.right_Ik.shape[1] <= self.left_Ok.shape[1]
        half = torch.empty(outputs, row_kk.shape[1]) if right_first else torch.zeros(row_kk.shape[0], a_SI.shape[1])
        for first in range(0, outputs, step):
            last = min(first + step, outputs)
            gradient_OI = block_OI[: last - first]
            if low_OI is None:
                torch.mm(delta_SO[:, first:last].T, a_SI, out=gradient_OI)
            else:
                gradient_OI.copy_(torch.mm(delta_SO[:, first:last].T, a_SI, out=low_OI[: last - first]))
            gradient_OI.mul_(self.w_OI[first:last])
            if right_first:
                torch.mm(gradient_OI, self.right_Ik, out=half[first:last])
            else:
                half.addmm_(self.left_Ok[first:last].T, gradient_OI)
        if right_first:
            torch.mm(self.left_Ok.T, half, out=row_kk)
        else:
            torch.mm(half, self.right_Ik, out=row_kk)


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
            thin = [layers[i] for i in self.thin]
            right_IK, self.columns = shared_rights(thin, SIDE)
            self.right_KI = right_IK.T.to(self.dtype).contiguous()
            self.lefts_kO = [pad_columns(layer.fold_left(), SIDE).T.to(self.dtype).contiguous() for layer in thin]

    @staticmethod
    def _full(layer: Layer) -> _FullLayer:
        assert isinstance(layer.correction, Full)
        w_OI = layer.correction.w_OI.float().contiguous()
        left_Ok, right_Ik = (pad_columns(side.float(), SIDE).contiguous() for side in (layer.left_Ok, layer.right_Ik))
        return _FullLayer(left_Ok, right_Ik, w_OI)

    def rows(self, deltas: Sequence[Tensor], a_TI: Tensor, bounds: list[int]) -> list[Tensor]:
        """One [B, kO, kI] float32 per layer."""
        window = slice(bounds[0], bounds[-1])
        a_TI = a_TI[window].to(self.dtype)
        deltas = [delta_TO[window].to(self.dtype) for delta_TO in deltas]
        lengths = [last - first for first, last in pairwise(bounds)]
        rows: dict[int, Tensor] = {}
        if self.thin:
            z_TK = token_products(a_TI, self.right_KI)
            for i, columns, left_kO in zip(self.thin, self.columns, self.lefts_kO, strict=True):
                rows[i] = segment_products(token_products(deltas[i], left_kO), z_TK[:, columns], lengths)
        if self.full:
            rows |= self._full_rows(deltas, a_TI, lengths)
        return [rows[i][:, :kO, :kI].contiguous() for i, (kO, kI) in enumerate(self.sides)]

    def _full_rows(self, deltas: Sequence[Tensor], a_TI: Tensor, lengths: list[int]) -> dict[int, Tensor]:
        inputs = a_TI.shape[1]
        widest = max(layer.w_OI.shape[0] for layer in self.full.values())
        block_OI = torch.empty(min(widest, max(256, GRADIENT_BLOCK // max(1, inputs))), inputs)
        low_OI = torch.empty_like(block_OI, dtype=self.dtype) if self.dtype != torch.float32 else None
        # oneDNN compiles a kernel per segment length as well, so where it does the product lengths are rounded up.
        onednn = low_OI is not None or torch.get_float32_matmul_precision() != "highest"
        rows = {
            i: torch.zeros(len(lengths), layer.left_Ok.shape[1], layer.right_Ik.shape[1])
            for i, layer in self.full.items()
        }
        first = 0
        for b, length in enumerate(lengths):
            last = first + length
            pad = onednn and length % ONEDNN_SEGMENT
            a_SI = _pad_tokens(a_TI[first:last], ONEDNN_SEGMENT) if pad else a_TI[first:last]
            for i, layer in self.full.items() if length else ():
                delta_SO = deltas[i][first:last]
                layer.row(
                    _pad_tokens(delta_SO, ONEDNN_SEGMENT) if pad else delta_SO, a_SI, block_OI, low_OI, rows[i][b]
                )
            first = last
        return rows
