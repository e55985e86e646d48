"""TRAK over projected rows: the whole row's autocorrelation, inverted (Park et al. 2023, arXiv 2303.14186).

With Phi [N, D] the projected gradients of the passages' log-odds and phi those of a query,

    score(q, z) = phi_q^T (Phi^T Phi + N lambda I)^{-1} phi_z,

whose matrix holds all layers' numbers together, where the curvature of an index goes layer by layer: D stays small.
Their factor Q, one minus the probability of each passage, is 1 here: a passage has many tokens and no one probability.
Norms are as they are, unlike in a cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.configs.errors import UserError

MOST_DIMS = 8192
"""A matrix of as many squared is inverted."""


def trak_scores(queries_QD: Tensor, rows_ND: Tensor, damping: float = 0.01) -> Tensor:
    """Scores of every passage for every query, float64 [Q, N].

    Args:
        queries_QD, rows_ND: raw gradient rows of queries and passages, unwhitened.
        damping: lambda, as a share of the mean eigenvalue.

    Raises:
        UserError: the rows have too many dimensions.
    """
    count, dims = rows_ND.shape
    if dims > MOST_DIMS:
        raise UserError(
            "TRAK inverts a matrix of all of a row's dimensions",
            got=f"{dims} dimensions",
            expected=f"at most {MOST_DIMS}",
            fix="make an index of fewer projection.dims",
        )
    phi_ND = rows_ND.double()
    moment_DD = phi_ND.T @ phi_ND / count
    moment_DD += damping * moment_DD.diagonal().mean() * torch.eye(dims, dtype=torch.float64)
    return queries_QD.double() @ torch.linalg.solve(moment_DD, phi_ND.T) / count
