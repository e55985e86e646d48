"""The curvature as a Kronecker product: per module two small factors in place of the whole autocorrelation.

A module's part of a row is its projected gradient G [kO, kI], of rows whose *whole* has unit norm. With

    A = mean of G G^T  [kO, kO],    B = mean of G^T G  [kI, kI],    tr A = tr B = mean of |G|^2,

the curvature is R_t = A (x) B / tr A: the Kronecker-factored form of K-FAC (Martens and Grosse 2015, arXiv 1503.05671),
taken of projected per-passage gradients, whose two factors are estimated jointly and not as independent ones of inputs
and output gradients. Dividing by the trace leaves R_t with the trace of the whole autocorrelation, so the *scale of a
module* is its own: a module that holds much of the rows' norm is not made louder or softer than R_t says.
Whitening is two small products,

    G~ = sqrt(tr A) (A + eps_A I)^{-1/2} G (B + eps_B I)^{-1/2},

where the damping is a share of the mean eigenvalue of each factor, eps_A = damping tr A / kO and eps_B = damping tr B /
kI. It costs kO kI (kO + kI) multiplications a module and row instead of (kO kI)^2, and kO^2 + kI^2 numbers instead of
(kO kI)^2; a few hundred rows estimate it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headwater.attribution.curvature.whitening import Whitening, inverse_root, require_damping
from headwater.attribution.rows.layout import ModuleSpan, RowLayout


class KroneckerWhitening(Whitening):
    """Two symmetric matrices per module, one on each side of G.

    Attributes:
        out_roots: per module sqrt(tr A) (A + eps_A I)^{-1/2}, float32 [kO, kO].
        in_roots: per module (B + eps_B I)^{-1/2}, float32 [kI, kI].
        out_values, in_values: per module the eigenvalues of A and of B without damping, ascending, float32.
    """

    kind = "kronecker"

    def __init__(
        self,
        layout: RowLayout,
        damping: float,
        count: int,
        roots: tuple[dict[str, Tensor], dict[str, Tensor]],
        values: tuple[dict[str, Tensor], dict[str, Tensor]],
        fingerprint: str = "",
    ) -> None:
        super().__init__(layout, damping, count, fingerprint)
        self.out_roots, self.in_roots = roots
        self.out_values, self.in_values = values

    @classmethod
    def from_factors(
        cls, layout: RowLayout, factors: Mapping[str, tuple[Tensor, Tensor]], damping: float, count: int = 0
    ) -> KroneckerWhitening:
        """Whitening from the two factors of each module.

        Args:
            layout: the row layout.
            factors: per module (A [kO, kO], B [kI, kI]).
            damping: above 0; results hardly differ from .003 to .1.
            count: rows that the factors were made from (for the record).

        Raises:
            UserError: damping is not a positive number.
        """
        require_damping(damping)
        roots: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        values: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for span in layout:
            trace = float(factors[span.name][0].trace())
            for side, factor_kk in enumerate(factors[span.name]):
                values_k, vectors_kk = torch.linalg.eigh(factor_kk.double())
                values_k = values_k.clamp_min(0)
                values[side][span.name] = values_k.float()
                eps = damping * float(values_k.mean())
                # Without any gradient a module's part of every row is zero, and stays so.
                root_kk = inverse_root(values_k, vectors_kk, eps) if eps > 0 else torch.eye(len(values_k)).double()
                roots[side][span.name] = (root_kk * trace**0.5 if side == 0 and eps > 0 else root_kk).float()
        return cls(layout, damping, count, roots, values)

    def part(self, part_Nd: Tensor, span: ModuleSpan) -> Tensor:
        out_OO = self.out_roots[span.name].to(part_Nd.device)
        in_II = self.in_roots[span.name].to(part_Nd.device)
        g_NOI = (part_Nd.reshape(-1, span.k_in) @ in_II).view(-1, span.k_out, span.k_in)
        return torch.matmul(out_OO, g_NOI).flatten(1)

    def part_back(self, part_Nd: Tensor, span: ModuleSpan) -> Tensor:
        g_NOI = part_Nd.reshape(-1, span.k_out, span.k_in)
        half_NOI = torch.linalg.solve(self.out_roots[span.name].double(), g_NOI)
        back_NIO = torch.linalg.solve(self.in_roots[span.name].double(), half_NOI.transpose(1, 2))
        return back_NIO.transpose(1, 2).flatten(1)

    def eigenvalues(self) -> dict[str, Tensor]:
        """Products of the factors' eigenvalues, over the trace."""
        found = {}
        for name, out_O in self.out_values.items():
            pairs_OI = out_O.double()[:, None] * self.in_values[name].double()
            found[name] = (pairs_OI / out_O.double().sum().clamp_min(1e-300)).flatten()
        return found

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{what}.{name}": value
            for what, each in (
                ("out_root", self.out_roots),
                ("in_root", self.in_roots),
                ("out_eigenvalues", self.out_values),
                ("in_eigenvalues", self.in_values),
            )
            for name, value in each.items()
        }
