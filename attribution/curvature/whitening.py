"""The curvature of a corpus: per module the autocorrelation R_t of its gradient rows, and the whitening made from it.

Rows are brought to unit norm first (the whole row, all modules together), so that the rows of passages and of queries
weigh alike when their curvatures are mixed. Shapes: n rows, D dims of a row, d dims of one module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headwater.attribution.rows.checks import require_width
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import atomic_path, fingerprint_file

BLOCK = 256
"""Rows of one matrix product. Fixed, so that results do not depend on how rows were handed over."""


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
