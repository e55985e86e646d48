"""One product for queries and directions alike, where the queries asked are the task.

A question's part of a module, M^{-1} q~, lies in the span of the directions U of the task's curvature if the question
is one of the task's and all directions are taken. Then U z~ alone is needed of a row: the squared length along the
directions is sum_i c_i (u_i . z~)^2, and the score is a combination of the same few numbers, where otherwise the row
would be multiplied with the queries as well. The numbers are the same but for rounding.

Legend: Q queries, r directions of a module with d numbers, W columns: the directions of all modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.attribution.rows.layout import RowLayout

LEFT_OUT = 1e-5
"""Largest share of a query's norm that may lie outside of the directions."""
FREE = 16
"""Columns behind the last module's."""
LEAST = 1e-6
"""Norm below which a direction is none."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What queries and directions are made of.

    Attributes:
        vectors: of each module the directions, sqrt(c) U^T, float32 [r, d].
        starts: of each module its first column; those that its directions leave free are empty.
        coefficients_QW: of the queries, float32.
    """

    vectors: list[Tensor]
    starts: list[int]
    coefficients_QW: Tensor


def shared_basis(layout: RowLayout, queries_QD: Tensor, directions: Sequence[Tensor], step: int) -> Basis | None:
    """The basis, or None if a query lies outside of it.

    Args:
        queries_QD: float32.
        directions: of each module sqrt(c) U^T, float32 [r, d], orthogonal.
        step: every module begins at a multiple of it, and has so many columns, or a multiple.
    """
    vectors, starts, parts, width = [], [], [], 0
    left_Q = torch.zeros(len(queries_QD), dtype=torch.float64)
    for span, part_rd in zip(layout, directions, strict=True):
        part_rd = part_rd[part_rd.norm(dim=1) > LEAST]
        wide_rd, query_Qd = part_rd.double(), queries_QD[:, span.slice].double()
        coefficients_Qr = query_Qd @ wide_rd.T / wide_rd.square().sum(dim=1)
        left_Q += (query_Qd - coefficients_Qr @ wide_rd).square().sum(dim=1)
        vectors.append(part_rd)
        starts.append(width)
        parts.append(torch.nn.functional.pad(coefficients_Qr, (0, -len(part_rd) % step)))
        width += parts[-1].shape[1]
    # Rows of a power of two lie where they push each other out of the first cache.
    parts.append(torch.zeros(len(queries_QD), FREE, dtype=torch.float64))
    if bool((left_Q > LEFT_OUT**2 * queries_QD.double().square().sum(dim=1)).any()):
        return None
    return Basis(vectors, starts, torch.cat(parts, dim=1).float())
