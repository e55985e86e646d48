"""Inner products of a block of rows with queries: float32, or integer where the rows are stored as integers.

Integer products are exact and several times as fast on CPUs with 8-bit dot instructions (VNNI). A vector is split into
one or two planes of int8, v = scale (128 high + low); two planes leave an error of 2^-15 of its largest number.
Legend: N rows, K vectors, D dims, d dims of a module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def products(rows_ND: Tensor, vectors_KD: Tensor) -> Tensor:
    """rows @ vectors^T, float32 [n, K]; both float32.

    One or two vectors are bound by reading the rows; many by arithmetic, where oneDNN is faster than BLAS on the CPU.
    """
    if len(vectors_KD) <= 2:
        out_NK = torch.empty(len(rows_ND), len(vectors_KD))
        for k, vector_D in enumerate(vectors_KD):
            out_NK[:, k] = torch.mv(rows_ND, vector_D)
        return out_NK
    if _ONEDNN and len(vectors_KD) > 16:
        return torch.ops.mkldnn._linear_pointwise(rows_ND, vectors_KD, None, "none", [], "")
    return torch.mm(rows_ND, vectors_KD.T)


def integer_products_work() -> bool:
    """Whether this build of torch multiplies int8 matrices on this processor."""
    try:
        ones = torch.ones(3, 5, dtype=torch.int8)
        return bool((torch._int_mm(ones, ones.T.contiguous()) == 5).all())
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


@dataclass(slots=True)
class IntegerVectors:
    """Vectors of one module as int8 planes.

    Attributes:
        planes_dK: int8 [d, planes * K], the high planes of all vectors first.
        scale_K: float32 [K], of the low plane's unit.
        sum_K: float32 [K], sum of each vector as represented, in units of its scale.
    """

    planes_dK: Tensor
    scale_K: Tensor
    sum_K: Tensor

    @classmethod
    def split(cls, vectors_Kd: Tensor, planes: int) -> IntegerVectors:
        """Rounds float32 vectors [K, d] to one or two planes."""
        steps = 127.0 if planes == 1 else 127.0 * 128
        scale_K1 = (vectors_Kd.abs().amax(dim=1, keepdim=True) / steps).clamp_min(1e-38)
        whole_Kd = (vectors_Kd / scale_K1).round_()
        parts = [whole_Kd]
        if planes == 2:
            high_Kd = (whole_Kd / 128).round()
            parts = [high_Kd, whole_Kd - 128 * high_Kd]
        # Not `.T.contiguous()`: that leaves the strides of a single row ambiguous, and _int_mm then reads beyond it.
        planes_dK = torch.empty(vectors_Kd.shape[1], planes * len(vectors_Kd), dtype=torch.int8)
        planes_dK.copy_(torch.cat(parts).T)
        return cls(planes_dK, scale_K1.flatten(), whole_Kd.sum(dim=1))

    def products(self, codes_Nd: Tensor, gain: int, offset: int) -> Tensor:
        """(gain codes - offset) @ vectors^T, float32 [n, K]; codes int8 [n, d]."""
        whole = torch._int_mm(codes_Nd, self.planes_dK)
        count = len(self.scale_K)
        out_NK = whole[:, :count].float()
        if whole.shape[1] > count:
            out_NK.mul_(128).add_(whole[:, count:])
        out_NK.mul_(self.scale_K * gain)
        if offset:
            out_NK.sub_(self.scale_K * self.sum_K * offset)
        return out_NK
