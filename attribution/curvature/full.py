"""The whole curvature: per module the autocorrelation R_t of its part of the rows, [d, d] (TrackStar's).

It has d (d + 1) / 2 numbers to be estimated from the rows of the sample, and whitening a row costs d^2 multiplications:
the Kronecker-factored form (kronecker.py) has fewer of both.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headwater.attribution.curvature.whitening import Whitening, inverse_root, require_damping
from headwater.attribution.rows.layout import ModuleSpan, RowLayout


class FullWhitening(Whitening):
    """(R_t + eps I)^{-1/2} per module.

    Attributes:
        roots: per module (R_t + eps I)^{-1/2}, float32 [d, d], symmetric.
        values: per module the eigenvalues of R_t without damping, ascending, float32 [d].
    """

    kind = "full"

    def __init__(
        self,
        layout: RowLayout,
        damping: float,
        count: int,
        roots: dict[str, Tensor],
        values: dict[str, Tensor],
        fingerprint: str = "",
    ) -> None:
        super().__init__(layout, damping, count, fingerprint)
        self.roots, self.values = roots, values

    @classmethod
    def from_autocorrelation(
        cls, layout: RowLayout, autocorrelation: Mapping[str, Tensor], damping: float, count: int = 0
    ) -> FullWhitening:
        """Whitening with eps = damping x mean eigenvalue, per module.

        Args:
            layout: the row layout.
            autocorrelation: R_t per module, [d, d].
            damping: above 0; .03 to .3 is the range that works with thousands of dimensions per module.
            count: rows that R_t was made from (for the record).

        Raises:
            UserError: damping is not a positive number.
        """
        require_damping(damping)
        found = {span.name: damped_root(autocorrelation[span.name], damping) for span in layout}
        roots = {name: root_dd for name, (root_dd, _) in found.items()}
        return cls(layout, damping, count, roots, {name: values_d for name, (_, values_d) in found.items()})

    def part(self, part_Nd: Tensor, span: ModuleSpan) -> Tensor:
        return part_Nd @ self.roots[span.name].to(part_Nd.device)

    def part_back(self, part_Nd: Tensor, span: ModuleSpan) -> Tensor:
        return torch.linalg.solve(self.roots[span.name].double(), part_Nd.T).T

    def eigenvalues(self) -> dict[str, Tensor]:
        return {name: values_d.double() for name, values_d in self.values.items()}

    def tensors(self) -> dict[str, Tensor]:
        roots = {f"root.{name}": value for name, value in self.roots.items()}
        return roots | {f"eigenvalues.{name}": value for name, value in self.values.items()}


def damped_root(autocorrelation_dd: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Of one module: (R_t + eps I)^{-1/2}, float32 [d, d], and the eigenvalues of R_t, ascending, float32 [d]."""
    values_d, vectors_dd = torch.linalg.eigh(autocorrelation_dd.double())
    values_d = values_d.clamp_min(0)
    eps = damping * float(values_d.mean())
    # Without any gradient a module's part of every row is zero, and stays so.
    root_dd = inverse_root(values_d, vectors_dd, eps) if eps > 0 else torch.eye(len(values_d))
    return root_dd.float(), values_d.float()
