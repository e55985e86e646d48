"""TRAK over projected rows: the whole row's autocorrelation, inverted (Park et al. 2023, arXiv 2303.14186).

With Phi [N, D] the projected gradients of the passages' log-odds and phi those of a query,

    score(q, z) = phi_q^T (Phi^T Phi + N lambda I)^{-1} phi_z,

whose matrix holds all layers' numbers together, where the curvature of an index goes layer by layer: D stays small.
Their factor Q, one minus the probability of each passage, is 1 here: a passage has many tokens and no one probability.
Norms are as they are, unlike in a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.evaluation.ranking import DEPTH, Passages, ScoringMethod
from headwater.attribution.tracing.attributor import Attributor
from headwater.attribution.tracing.queries import Query
from headwater.configs.errors import UserError

MOST_DIMS = 8192
"""A matrix of as many squared is inverted."""


class Trak(ScoringMethod):
    """TRAK by the rows of an opened index, which are held in memory.

    Raises:
        UserError: its rows are whitened, or have too many dimensions.
    """

    name = "trak"

    def __init__(self, attributor: Attributor, depth: int = DEPTH) -> None:
        super().__init__(depth)
        self.attributor, self.index = attributor, attributor.opened[0].index
        if self.index.whitening.kind != "none":
            fix = "make an index with curvature.kind=none"
            raise UserError(f"TRAK takes rows as they are, and those of {self.index.path} are whitened", fix=fix)
        require_few(self.index.layout.dims)

    def scores(self, queries: Sequence[Query], passages: Passages) -> np.ndarray:
        """Every passage's score, float32 [queries, passages]."""
        rows_ND = self.index.rows(0, len(passages))
        return trak_scores(self.attributor.rows(queries), rows_ND).float().numpy()


def trak_scores(queries_QD: Tensor, rows_ND: Tensor, damping: float = 0.01) -> Tensor:
    """Scores of every passage for every query, float64 [Q, N].

    Args:
        queries_QD, rows_ND: raw gradient rows of queries and passages, unwhitened.
        damping: lambda, as a share of the mean eigenvalue.

    Raises:
        UserError: the rows have too many dimensions.
    """
    count, dims = rows_ND.shape
    require_few(dims)
    phi_ND = rows_ND.double()
    moment_DD = phi_ND.T @ phi_ND / count
    moment_DD += damping * moment_DD.diagonal().mean() * torch.eye(dims, dtype=torch.float64)
    return queries_QD.double() @ torch.linalg.solve(moment_DD, phi_ND.T) / count


def require_few(dims: int) -> None:
    if dims > MOST_DIMS:
        raise UserError(
            "TRAK inverts a matrix of all of a row's dimensions",
            got=f"{dims} dimensions",
            expected=f"at most {MOST_DIMS}",
            fix="make an index of fewer projection.dims",
        )
