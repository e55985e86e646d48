"""Norms of gradient rows."""

from __future__ import annotations

import torch
from torch import Tensor


def row_norms(rows_ND: Tensor) -> Tensor:
    """Euclidean norms, float32 [n], of rows, float [n, D]; summed in float64."""
    return torch.linalg.vector_norm(rows_ND, dim=1, dtype=torch.float64).float()


def unit_rows(rows_ND: Tensor) -> Tensor:
    """Each row divided by its Euclidean norm, float32 [n, D]; a row of zeros stays zero."""
    rows_ND = rows_ND.float()
    # In float64: squares of float32 gradients below 1e-19 would vanish.
    norms_N1 = torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True, dtype=torch.float64)
    return (rows_ND / norms_N1.clamp_min(torch.finfo(torch.float64).tiny)).float()
