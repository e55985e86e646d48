"""The curvature of a corpus: per module the autocorrelation R_t of its gradient rows, and the whitening made from it.

Rows are brought to unit norm first (the whole row, all modules together), so that the rows of passages and of queries
weigh alike when their curvatures are mixed. Shapes: n rows, D dims of a row, d dims of one module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headwater.attribution.index.errors import NonFiniteRowsError
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import atomic_path, fingerprint_file

BLOCK = 256
"""Rows of one matrix product. Fixed, so that results do not depend on how rows were handed over."""

FIXED_POINT = 2.0**38
"""Sums are kept as multiples of 2^-38 in int64: exact and associative, for up to 2^25 rows."""


def unit_rows(rows_ND: Tensor) -> Tensor:
    """Each row divided by its Euclidean norm, float32 [n, D]; a row of zeros stays zero."""
    rows_ND = rows_ND.float()
    # In float64: squares of float32 gradients below 1e-19 would vanish.
    norms_N1 = torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True, dtype=torch.float64)
    return (rows_ND / norms_N1.clamp_min(torch.finfo(torch.float64).tiny)).float()


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


def require_width(rows_ND: Tensor, layout: RowLayout, what: str = "gradient rows") -> None:
    """Refuses rows that are not [n, D] with the layout's D."""
    if rows_ND.ndim != 2 or rows_ND.shape[1] != layout.dims:
        raise MismatchError(
            f"{what} do not fit the row layout",
            got=tuple(rows_ND.shape),
            expected=f"[n, {layout.dims}]",
            fix="make them with the modules and projected dimensions that the index was made with",
        )


@dataclass(slots=True)
class Whitening:
    """(R_t + eps I)^{-1/2} per module; the identity when `roots` is empty.

    Attributes:
        layout: the row layout.
        damping: eps over the mean eigenvalue of R_t, the same for every module.
        count: rows that R_t was made from.
        roots: per module (R_t + eps I)^{-1/2}, float32 [d, d], symmetric.
        eigenvalues: per module the eigenvalues of R_t without damping, ascending, float32 [d].
        fingerprint: hash of the saved file; empty until saved or loaded.
    """

    layout: RowLayout
    damping: float
    count: int
    roots: dict[str, Tensor]
    eigenvalues: dict[str, Tensor]
    fingerprint: str = ""

    @classmethod
    def none(cls, layout: RowLayout) -> Whitening:
        """Rows stay as they are."""
        return cls(layout, 0.0, 0, {}, {})

    @classmethod
    def from_autocorrelation(
        cls, layout: RowLayout, autocorrelation: Mapping[str, Tensor], damping: float, count: int = 0
    ) -> Whitening:
        """Whitening with eps = damping x mean eigenvalue, per module.

        Args:
            layout: the row layout.
            autocorrelation: R_t per module, [d, d].
            damping: above 0; .03 to .3 is the range that works with thousands of dimensions per module.
            count: rows that R_t was made from (for the record).

        Raises:
            UserError: damping is not a positive number.
        """
        if not 0 < damping < float("inf"):
            raise UserError(
                "the damping of the curvature must be positive", got=damping, expected="above 0", fix="use .1"
            )
        roots, eigenvalues = {}, {}
        for span in layout:
            values_d, vectors_dd = torch.linalg.eigh(autocorrelation[span.name].double())
            values_d = values_d.clamp_min(0)
            eigenvalues[span.name] = values_d.float()
            eps = damping * float(values_d.mean())
            if eps <= 0:  # a module without any gradient: its part of every row is zero
                roots[span.name] = torch.eye(span.dims)
                continue
            root_dd = (vectors_dd * (values_d + eps).rsqrt()) @ vectors_dd.T
            roots[span.name] = ((root_dd + root_dd.T) / 2).float()
        return cls(layout, damping, count, roots, eigenvalues)

    @property
    def kind(self) -> str:
        return "train" if self.roots else "none"

    def apply(self, rows_ND: Tensor) -> Tensor:
        """Whitened rows, float32 [n, D]; of raw rows, float [n, D]."""
        require_width(rows_ND, self.layout)
        out_ND = torch.empty(rows_ND.shape, dtype=torch.float32)
        for start in range(0, len(rows_ND), BLOCK):
            block = slice(start, start + BLOCK)
            if not self.roots:
                out_ND[block] = rows_ND[block]
                continue
            block_ND = rows_ND[block].float()
            for span in self.layout:
                torch.mm(block_ND[:, span.slice], self.roots[span.name], out=out_ND[block, span.slice])
        return out_ND

    def unapply(self, rows_ND: Tensor) -> Tensor:
        """The rows that `apply` takes to these, float32 [n, D]; solved in float64."""
        require_width(rows_ND, self.layout)
        if not self.roots:
            return rows_ND.float().clone()
        out_ND = torch.empty(rows_ND.shape, dtype=torch.float32)
        for span in self.layout:
            root_dd = self.roots[span.name].double()
            solved_dN = torch.linalg.solve(root_dd, rows_ND[:, span.slice].double().T)
            out_ND[:, span.slice] = solved_dN.T.float()
        return out_ND

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "damping": self.damping, "rows": self.count, "fingerprint": self.fingerprint}

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes a safetensors file and returns its fingerprint."""
        tensors = {f"root.{name}": value.contiguous() for name, value in self.roots.items()}
        tensors |= {f"eigenvalues.{name}": value.contiguous() for name, value in self.eigenvalues.items()}
        tensors["damping"] = torch.tensor(self.damping, dtype=torch.float64)
        tensors["count"] = torch.tensor(self.count, dtype=torch.int64)
        with atomic_path(path) as part:
            save_file(tensors, part)
        self.fingerprint = fingerprint_file(path)
        return self.fingerprint

    @classmethod
    def load(cls, path: str | os.PathLike[str], layout: RowLayout) -> Whitening:
        """Reads what `save` wrote.

        Raises:
            MissingError, CorruptError: the file is not there, or not readable.
            MismatchError: it belongs to another row layout.
        """
        path = Path(path)
        if not path.exists():
            raise MissingError(f"{path} is missing", fix="run `headwater index` again")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise CorruptError(
                f"{path} is not a readable curvature file", got=error, fix="make the index again"
            ) from None
        roots = {key[5:]: value for key, value in tensors.items() if key.startswith("root.")}
        values = {key[12:]: value for key, value in tensors.items() if key.startswith("eigenvalues.")}
        expected = {span.name: (span.dims, span.dims) for span in layout} if roots else {}
        found = {name: tuple(value.shape) for name, value in roots.items()}
        if found != expected:
            raise MismatchError(f"{path} belongs to another row layout", got=found, expected=expected)
        damping, count = float(tensors["damping"]), int(tensors["count"])
        return cls(layout, damping, count, roots, values, fingerprint_file(path))
