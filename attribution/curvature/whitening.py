"""What the curvature of a corpus does to gradient rows: whitening, g~ = R_t^{-1/2} g, module by module.

R_t is kept in one of two forms: Kronecker-factored (kronecker.py) or whole (full.py); files.py opens either. Shapes: n
rows, D dims of a row, d = kO kI dims of one module.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from headwater.attribution.rows.checks import require_width
from headwater.attribution.rows.layout import ModuleSpan, RowLayout
from headwater.configs.errors import UserError
from headwater.train.artifacts import atomic_path, fingerprint_file
from headwater.train.tensor_files import save_tensors

BLOCK = 256
"""Rows of one matrix product. Fixed, so that results do not depend on how rows were handed over."""


class Whitening(ABC):
    """A symmetric matrix per module that rows are multiplied with.

    Attributes:
        kind: of the curvature that it undoes.
        layout: the row layout.
        damping: what was added to the eigenvalues, over their mean, the same for every module.
        count: rows that the curvature was made from.
        fingerprint: hash of the saved file; empty until saved or loaded.
    """

    kind: ClassVar[str]

    def __init__(self, layout: RowLayout, damping: float, count: int, fingerprint: str = "") -> None:
        self.layout, self.damping, self.count, self.fingerprint = layout, damping, count, fingerprint

    @staticmethod
    def none(layout: RowLayout) -> Whitening:
        """Rows stay as they are."""
        return NoWhitening(layout, 0.0, 0)

    @abstractmethod
    def part(self, part_Nd: Tensor, span: ModuleSpan) -> Tensor:
        """A module's part of whitened rows, float32 [n, d], of its part of raw rows, float32 [n, d]."""

    @abstractmethod
    def part_back(self, part_Nd: Tensor, span: ModuleSpan) -> Tensor:
        """The part that `part` takes to this one, float64 [n, d]; of float64 [n, d]."""

    @abstractmethod
    def eigenvalues(self) -> dict[str, Tensor]:
        """Per module those of R_t without damping, float64 [d]; empty where there is no curvature."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""

    def apply(self, rows_ND: Tensor) -> Tensor:
        """Whitened rows, float32 [n, D], on the rows' device; of raw rows, float [n, D]."""
        require_width(rows_ND, self.layout)
        out_ND = torch.empty(rows_ND.shape, dtype=torch.float32, device=rows_ND.device)
        for start in range(0, len(rows_ND), BLOCK):
            block_ND = rows_ND[start : start + BLOCK].float()
            for span in self.layout:
                out_ND[start : start + BLOCK, span.slice] = self.part(block_ND[:, span.slice], span)
        return out_ND

    def unapply(self, rows_ND: Tensor) -> Tensor:
        """The rows that `apply` takes to these, float32 [n, D]; solved in float64."""
        require_width(rows_ND, self.layout)
        out_ND = torch.empty(rows_ND.shape, dtype=torch.float32)
        for span in self.layout:
            out_ND[:, span.slice] = self.part_back(rows_ND[:, span.slice].double(), span).float()
        return out_ND

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "damping": self.damping, "rows": self.count, "fingerprint": self.fingerprint}

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes a safetensors file and returns its fingerprint."""
        tensors = {name: value.contiguous() for name, value in self.tensors().items()}
        tensors["damping"] = torch.tensor(self.damping, dtype=torch.float64)
        tensors["count"] = torch.tensor(self.count, dtype=torch.int64)
        with atomic_path(path) as part:
            save_tensors(part, tensors)
        self.fingerprint = fingerprint_file(path)
        return self.fingerprint


class NoWhitening(Whitening):
    """The identity."""

    kind = "none"

    def part(self, part_Nd: Tensor, span: ModuleSpan) -> Tensor:
        return part_Nd

    def part_back(self, part_Nd: Tensor, span: ModuleSpan) -> Tensor:
        return part_Nd

    def eigenvalues(self) -> dict[str, Tensor]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        return {}


def require_damping(damping: float) -> None:
    """Refuses what is not a positive number."""
    if not 0 < damping < float("inf"):
        raise UserError("the damping of the curvature must be positive", got=damping, expected="above 0", fix="use .1")


def inverse_root(values_k: Tensor, vectors_kk: Tensor, eps: float) -> Tensor:
    """(V diag(values) V^T + eps I)^{-1/2}, float64 [k, k], symmetric to the bit."""
    root_kk = (vectors_kk * (values_k + eps).rsqrt()) @ vectors_kk.T
    return (root_kk + root_kk.T) / 2
