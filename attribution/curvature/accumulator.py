"""R_t, the autocorrelation of a corpus's gradient rows, summed so that no order of rows changes a bit of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headwater.attribution.curvature.whitening import BLOCK
from headwater.attribution.rows.checks import require_finite, require_width
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.rows.norms import unit_rows
from headwater.configs.errors import MismatchError, UserError

FIXED_POINT = 2.0**38
"""Sums are kept as multiples of 2^-38 in int64: exact and associative, for up to 2^25 rows."""


class CurvatureAccumulator:
    """Sums the autocorrelation of unit rows, per module, block by block.

    The sums are exact integers (fixed point), so their order does not matter: the same groups of rows give the same
    bits on one rank or on several, resumed or not.
    """

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.count = 0
        self._sums: dict[str, Tensor] = {
            span.name: torch.zeros(span.dims, span.dims, dtype=torch.int64) for span in layout
        }

    def add(self, rows_ND: Tensor) -> None:
        """Adds raw rows, float [n, D]. Rows of zeros count for nothing.

        Raises:
            MismatchError: the rows have another width than the layout.
            NonFiniteRowsError: a row holds NaN or infinity.
        """
        require_width(rows_ND, self.layout)
        for block_ND in rows_ND.split(BLOCK):
            require_finite(block_ND)
            unit_ND = unit_rows(block_ND)
            unit_ND = unit_ND[unit_ND.any(dim=1)]
            for span in self.layout:
                part_Nd = unit_ND[:, span.slice]
                product_dd = (part_Nd.T @ part_Nd).double()
                self._sums[span.name] += product_dd.mul_(FIXED_POINT).round_().to(torch.int64)
            self.count += len(unit_ND)

    def merge(self, other: CurvatureAccumulator) -> None:
        """Adds another accumulator's sums."""
        if other.layout != self.layout:
            raise MismatchError("two curvatures have different row layouts", got=other.layout, expected=self.layout)
        for name, sum_dd in other._sums.items():
            self._sums[name] += sum_dd
        self.count += other.count

    def all_reduce(self, group: Any = None) -> None:
        """Sums over the ranks of an initialised torch.distributed group; does nothing without one."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        for sum_dd in self._sums.values():
            torch.distributed.all_reduce(sum_dd, group=group)
        count = torch.tensor(self.count, dtype=torch.int64)
        torch.distributed.all_reduce(count, group=group)
        self.count = int(count)

    def autocorrelation(self) -> dict[str, Tensor]:
        """R_t: per module the mean of g g^T over unit rows, float64 [d, d].

        Raises:
            UserError: no row has been added.
        """
        if not self.count:
            raise UserError("the curvature has seen no gradient row", fix="sample at least one passage with a gradient")
        return {name: sum_dd.double() / (FIXED_POINT * self.count) for name, sum_dd in self._sums.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """int64 tensors only, so that it can be saved as safetensors."""
        return {"count": torch.tensor(self.count), **{f"sum.{name}": value for name, value in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        expected = {"count", *(f"sum.{name}" for name in self._sums)}
        if set(state) != expected:
            raise MismatchError("a saved curvature has other modules", got=sorted(state), expected=sorted(expected))
        for name, mine in self._sums.items():
            if state[f"sum.{name}"].shape != mine.shape:
                shape = tuple(state[f"sum.{name}"].shape)
                raise MismatchError(f"curvature of {name} has another size", got=shape, expected=tuple(mine.shape))
        self._sums = {name: state[f"sum.{name}"].to(torch.int64).clone() for name in self._sums}
        self.count = int(state["count"])
