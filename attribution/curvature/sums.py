"""Sums over a corpus's gradient rows that its curvature is made from, such that no order of rows changes a bit.

Rows are brought to unit norm first (the whole row, all modules together), so that the rows of passages and of queries
weigh alike when their curvatures are mixed. Shapes: n rows, D dims of a row, d = kO kI dims of one module, whose part
of a row is the projected gradient G [kO, kI].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headwater.attribution.curvature.full import FullWhitening, damped_root
from headwater.attribution.curvature.kronecker import KroneckerWhitening
from headwater.attribution.curvature.whitening import BLOCK, Whitening, require_damping
from headwater.attribution.rows.checks import require_finite, require_width
from headwater.attribution.rows.layout import ModuleSpan, RowLayout
from headwater.attribution.rows.norms import exact_norms, unit_rows
from headwater.configs.errors import MismatchError, UserError

COARSE = 2.0**30
FINE = 2.0**68
"""A sum is kept as two integers, in units of 2^-30 and, for what that leaves, of 2^-68: exact and associative for up to
2^32 rows, and fine enough for a module that holds a millionth of its rows' norm."""


class CurvatureSums(ABC):
    """Sums products of unit rows, per module, block by block.

    The sums are exact integers (fixed point), so their order does not matter: the same groups of rows give the same
    bits on one rank or on several, resumed or not.
    """

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.count = 0
        self._sums: dict[str, Tensor] = {
            f"{what}.{span.name}": torch.zeros(2, size, size, dtype=torch.int64)
            for span in layout
            for what, size in self.sizes(span).items()
        }

    @abstractmethod
    def sizes(self, span: ModuleSpan) -> dict[str, int]:
        """Name -> side of each square sum that a module has."""

    @abstractmethod
    def products(self, part_Nd: Tensor, span: ModuleSpan) -> dict[str, Tensor]:
        """A block's contribution to each of them, float32, of unit rows' parts float32 [n, d]."""

    @abstractmethod
    def whitening(self, damping: float, rank: int = 0, ranks: int = 1) -> Whitening:
        """What undoes this curvature; errors as of the whitening's own constructor.

        Args:
            damping: of the whitening.
            rank, ranks: this process among those of torch.distributed, which all hold the same sums and call this
                together; what takes long is dealt out over them.
        """

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
            some_N = exact_norms(block_ND) > 0
            if not bool(some_N.all()):
                unit_ND = unit_ND[some_N]
            for span in self.layout:
                for what, product in self.products(unit_ND[:, span.slice], span).items():
                    self._sums[f"{what}.{span.name}"] += fixed_point(product).cpu()
            self.count += len(unit_ND)

    def merge(self, other: CurvatureSums) -> None:
        """Adds another one's sums."""
        if type(other) is not type(self) or other.layout != self.layout:
            raise MismatchError("two curvatures have different row layouts", got=other.layout, expected=self.layout)
        for name, value in other._sums.items():
            self._sums[name] += value
        self.count += other.count

    def all_reduce(self, group: Any = None) -> None:
        """Sums over the ranks of an initialised torch.distributed group; does nothing without one."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        for value in self._sums.values():
            torch.distributed.all_reduce(value, group=group)
        count = torch.tensor(self.count, dtype=torch.int64)
        torch.distributed.all_reduce(count, group=group)
        self.count = int(count)

    def means(self, what: str) -> dict[str, Tensor]:
        """Per module the mean over rows of one of the sums, float64; errors as of `mean`."""
        return {name: self.mean(what, name) for name in self.layout.names}

    def mean(self, what: str, module: str) -> Tensor:
        """The mean over rows of one of a module's sums, float64.

        Raises:
            UserError: no row has been added.
        """
        if not self.count:
            raise UserError("the curvature has seen no gradient row", fix="sample at least one passage with a gradient")
        coarse, fine = self._sums[f"{what}.{module}"].double()
        return (coarse / COARSE + fine / FINE) / self.count

    def state_dict(self) -> dict[str, Tensor]:
        """int64 tensors only, so that it can be saved as safetensors."""
        return {"count": torch.tensor(self.count), **self._sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        expected = {"count", *self._sums}
        if set(state) != expected:
            raise MismatchError("a saved curvature has other modules", got=sorted(state), expected=sorted(expected))
        for name, mine in self._sums.items():
            if state[name].shape != mine.shape:
                shape = tuple(state[name].shape)
                raise MismatchError(f"curvature of {name} has another size", got=shape, expected=tuple(mine.shape))
        self._sums = {name: state[name].to(torch.int64).clone() for name in self._sums}
        self.count = int(state["count"])


class AutocorrelationSums(CurvatureSums):
    """For the full curvature: R_t, the mean of g g^T per module, [d, d]."""

    def sizes(self, span: ModuleSpan) -> dict[str, int]:
        return {"sum": span.dims}

    def products(self, part_Nd: Tensor, span: ModuleSpan) -> dict[str, Tensor]:
        return {"sum": part_Nd.T @ part_Nd}

    def autocorrelation(self) -> dict[str, Tensor]:
        """R_t: per module the mean of g g^T over unit rows, float64 [d, d]."""
        return self.means("sum")

    def whitening(self, damping: float, rank: int = 0, ranks: int = 1) -> FullWhitening:
        require_damping(damping)
        roots, values = {}, {}
        for span, owner in dealt(self.layout, ranks):
            if owner == rank:
                root_dd, values_d = damped_root(self.mean("sum", span.name), damping)
            else:
                root_dd, values_d = torch.empty(span.dims, span.dims), torch.empty(span.dims)
            roots[span.name], values[span.name] = root_dd, values_d
        if ranks > 1:
            for span, owner in dealt(self.layout, ranks):
                torch.distributed.broadcast(roots[span.name], owner)
                torch.distributed.broadcast(values[span.name], owner)
        return FullWhitening(self.layout, damping, self.count, roots, values)


class FactorSums(CurvatureSums):
    """For the Kronecker-factored curvature: A, the mean of G G^T [kO, kO], and B, the mean of G^T G [kI, kI]."""

    def sizes(self, span: ModuleSpan) -> dict[str, int]:
        return {"out": span.k_out, "in": span.k_in}

    def products(self, part_Nd: Tensor, span: ModuleSpan) -> dict[str, Tensor]:
        g_NOI = part_Nd.reshape(-1, span.k_out, span.k_in)
        by_out_OM = g_NOI.transpose(0, 1).reshape(span.k_out, -1)
        by_in_MI = g_NOI.reshape(-1, span.k_in)
        return {"out": by_out_OM @ by_out_OM.T, "in": by_in_MI.T @ by_in_MI}

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Per module (A, B), float64; both have the mean squared norm of the module's part as their trace."""
        out, into = self.means("out"), self.means("in")
        return {name: (out[name], into[name]) for name in out}

    def whitening(self, damping: float, rank: int = 0, ranks: int = 1) -> KroneckerWhitening:
        return KroneckerWhitening.from_factors(self.layout, self.factors(), damping, self.count)


SUMS: dict[str, type[CurvatureSums]] = {"kronecker": FactorSums, "full": AutocorrelationSums}
"""By the kind of curvature."""


def dealt(layout: RowLayout, ranks: int) -> list[tuple[ModuleSpan, int]]:
    """The modules, in order, each with the rank that takes it: the largest first, to whom has the least to do so far.
    What a module takes goes with the cube of its dims."""
    work, owners = [0] * ranks, dict[str, int]()
    for span in sorted(layout, key=lambda span: -span.dims):
        owners[span.name] = work.index(min(work))
        work[owners[span.name]] += span.dims**3
    return [(span, owners[span.name]) for span in layout]


def fixed_point(values: Tensor) -> Tensor:
    """Two integers for each number, int64 [2, ...]: multiples of 2^-30, and of 2^-68 for what they leave."""
    values = values.double()
    coarse = (values * COARSE).round_()
    fine = ((values - coarse / COARSE) * FINE).round_()
    return torch.stack([coarse, fine]).to(torch.int64)
