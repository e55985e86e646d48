"""What gradient rows are refused for: numbers that are not finite, another width than the layout's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.rows.norms import exact_norms
from headwater.configs.errors import MismatchError, UserError


class NonFiniteRowsError(UserError):
    """Gradient rows that hold NaN or infinity."""


def require_finite(
    rows_ND: Tensor,
    first: int | None = None,
    what: str = "gradient rows",
    name: Callable[[int], str] | None = None,
) -> None:
    """Refuses rows with NaN or infinity.

    Args:
        first: number of the first row.
        what: the rows are.
        name: of the passage of a row, by its place in `rows_ND`; else rows are named by their numbers.

    Raises:
        NonFiniteRowsError: with the first such rows.
    """
    if bool(torch.isfinite(exact_norms(rows_ND)).all()):
        return
    good_N = torch.isfinite(rows_ND).all(dim=1)
    if not bool(good_N.all()):
        bad = torch.nonzero(~good_N).flatten().tolist()
        named = [name(place) if name else str(place + (first or 0)) for place in bad[:5]]
        raise NonFiniteRowsError(
            f"{len(bad)} of the {what} hold NaN or infinity",
            got=f"{'passages' if name else 'rows'} {', '.join(named)}{', ...' if len(bad) > 5 else ''}",
            expected="finite numbers",
            fix="look for overflow in half precision or for a loss that diverged, and compute the rows in float32",
        )


def require_width(rows_ND: Tensor, layout: RowLayout, what: str = "gradient rows") -> None:
    """Refuses rows that are not [n, D] with the layout's D."""
    if rows_ND.ndim != 2 or rows_ND.shape[1] != layout.dims:
        raise MismatchError(
            f"{what} do not fit the row layout",
            got=tuple(rows_ND.shape),
            expected=f"[n, {layout.dims}]",
            fix="make them with the modules and projected dimensions that the index was made with",
        )
