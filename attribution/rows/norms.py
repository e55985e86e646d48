"""Norms of gradient rows."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024
"""Numbers whose squares are summed in float32 before they are added up in float64."""
SAFE = (1e-12, 1e15)
"""Between these norms no square that matters vanishes in float32, and none overflows."""


def exact_norms(rows_ND: Tensor) -> Tensor:
    """Euclidean norms, float64 [n], of rows, float [n, D]; NaN or infinity where a row holds one."""
    if rows_ND.dtype != torch.float32:
        return torch.linalg.vector_norm(rows_ND, dim=1, dtype=torch.float64)
    whole = rows_ND.shape[1] // CHUNK * CHUNK
    parts_NC = torch.linalg.vector_norm(rows_ND[:, :whole].unflatten(1, (whole // CHUNK, CHUNK)), dim=2).double()
    rest_N = torch.linalg.vector_norm(rows_ND[:, whole:], dim=1).double()
    norms_N = (parts_NC.square().sum(dim=1) + rest_N.square()).sqrt()
    # Squares of float32 gradients below 1e-19 would vanish.
    odd_N = unsafe(norms_N)
    if bool(odd_N.any()):
        norms_N[odd_N] = torch.linalg.vector_norm(rows_ND[odd_N], dim=1, dtype=torch.float64)
    return norms_N


def unsafe(norms_N: Tensor) -> Tensor:
    """Which norms lie outside of `SAFE`, or are no numbers: bool [n]."""
    return ~((norms_N > SAFE[0]) & (norms_N < SAFE[1]))


def row_norms(rows_ND: Tensor) -> Tensor:
    """Euclidean norms, float32 [n], of rows, float [n, D]."""
    return exact_norms(rows_ND).float()


def unit_rows(rows_ND: Tensor) -> Tensor:
    """Each row divided by its Euclidean norm, float32 [n, D]; a row of zeros stays zero."""
    norms_N = exact_norms(rows_ND)
    rows_ND = rows_ND.float()
    odd_N = unsafe(norms_N)
    unit_ND = rows_ND / norms_N.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    if bool(odd_N.any()):  # a norm that float32 cannot hold, or not as exactly
        tiny = torch.finfo(torch.float64).tiny
        unit_ND[odd_N] = (rows_ND[odd_N] / norms_N[odd_N].clamp_min(tiny)[:, None]).float()
    return unit_ND
