"""Inner products of a block of rows with queries, in float32 results. N rows, Q vectors, D dims."""

from __future__ import annotations

import torch
from torch import Tensor

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def products(rows_ND: Tensor, vectors_QD: Tensor) -> Tensor:
    """rows @ vectors^T, float32 [n, Q]; both float32.

    One or two vectors are bound by reading the rows, more by arithmetic, where oneDNN is faster than BLAS on the CPU.
    """
    if len(vectors_QD) <= 2:
        out_NQ = torch.empty(len(rows_ND), len(vectors_QD))
        for q, vector_D in enumerate(vectors_QD):
            out_NQ[:, q] = torch.mv(rows_ND, vector_D)
        return out_NQ
    if _ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(rows_ND, vectors_QD, None, "none", [], "")
    return torch.mm(rows_ND, vectors_QD.T)
