"""Inner products of a block of float32 rows with queries, on a processor or a GPU; rows of few bits have theirs in
kernels/coded.py.

Legend: N rows, K vectors, D dims.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def products(rows_ND: Tensor, vectors_KD: Tensor) -> Tensor:
    """rows @ vectors^T, float32 [n, K]; both float32.

    One or two vectors are bound by reading the rows; many by arithmetic, where oneDNN is faster than BLAS on the CPU.
    """
    if rows_ND.is_cuda:
        return torch.mm(rows_ND, vectors_KD.T)
    if len(vectors_KD) <= 2:
        out_NK = torch.empty(len(rows_ND), len(vectors_KD))
        for k, vector_D in enumerate(vectors_KD):
            out_NK[:, k] = torch.mv(rows_ND, vector_D)
        return out_NK
    if _ONEDNN and len(vectors_KD) > 16:
        return torch.ops.mkldnn._linear_pointwise(rows_ND, vectors_KD, None, "none", [], "")
    return torch.mm(rows_ND, vectors_KD.T)
