"""Captured rows held against autograd: at the first captured update, those of a layer must add up to its gradient.

The loss of an update is the sum over its passages, so the projected gradient that autograd adds up in a layer's weight
is the sum of the passages' rows, whatever the layout. A layer that multiplies something else than it is handed, or that
delivers twice or not at all, is found before anything of it is kept. An output head is held against it where its weight
has no other use: in a tied one's the embedding's gradient is added up as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from headwater.attribution.models.base import Site
from headwater.attribution.rows.agreement import first_and_last, projected, some
from headwater.attribution.rows.hooks import Target, Watcher, names_of
from headwater.configs.errors import UserError
from headwater.kernels import Correction, Factored, Full

TOLERANCE = {torch.float32: 1e-3}
"""Greatest relative difference of a layer's sum; below float32 the gradients themselves are rounded: `ROUGH`."""
ROUGH = 0.03


class FirstUpdate:
    """What autograd makes of some layers in one update: of each kind the first and the last.

    Args:
        watcher: of the captured layers, with its corrections.
        correction_of: what the rows of a layer are corrected with.
        head: the output head, if its weight's gradient is its own.
        summed: the last backward pass brings the sum over all micro-batches, not the gradient of the last alone.
    """

    def __init__(
        self,
        watcher: Watcher,
        correction_of: Callable[[Site], Correction | None],
        head: Site | None = None,
        summed: bool = False,
    ) -> None:
        self.watcher, self.head, self.summed = watcher, head, summed
        chosen = first_and_last(names_of(watcher.sites))
        self.sites = [site for site in watcher.sites if site.name in chosen] + ([head] if head is not None else [])
        self.expected = {site.name: torch.zeros(0) for site in self.sites}
        self._corrections = {site.name: correction_of(site) for site in self.sites}
        self._handles = [site.weight.register_hook(self._hook(site)) for site in self.sites]

    def _hook(self, site: Site) -> Callable[[Tensor], None]:
        def arrived(gradient: Tensor) -> None:
            dense_OI = corrected(site.matrix(gradient).detach().float(), self._corrections[site.name])
            part = projected(self.watcher, site, dense_OI).flatten().double().cpu()
            before = self.expected[site.name]
            self.expected[site.name] = before + part if len(before) and not self.summed else part

        return arrived

    def close(self) -> None:
        """Looks on no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def require(self, targets: Sequence[Target], scale: float) -> None:
        """Compares with the rows of the same update, as this rank has made them.

        Args:
            scale: what the loss was multiplied by before its backward pass: the head's rows are without it.

        Raises:
            UserError: naming the layers whose rows do not add up to their gradients.
        """
        self.close()
        wrong = {}
        largest = max((float(each.norm()) for each in self.expected.values() if len(each)), default=0.0)
        for site in self.sites:
            span, expected_D = self.watcher.spans[site.name], self.expected[site.name]
            if not len(expected_D) or not torch.isfinite(expected_D).all():
                continue  # frozen, or whoever takes the rows is told whose are not finite
            rows: list[Any] = [target.rows_BD[:, span.slice].double().sum(dim=0).cpu() for target in targets]
            got_D = torch.stack(rows).sum(dim=0) * (scale if site is self.head else 1.0)
            difference = float((got_D - expected_D).norm() / expected_D.norm().clamp_min(1e-4 * largest + 1e-30))
            if not difference <= TOLERANCE.get(site.weight.dtype, ROUGH):
                wrong[site.name] = difference
        if wrong:
            worst = max(wrong, key=lambda name: wrong[name])
            raise UserError(
                f"this model's rows cannot be captured: they do not add up to its gradients in {some(list(wrong))}",
                got=f"a relative difference of {wrong[worst]:.2g} in {worst}",
                expected="the gradient that autograd makes of the same update",
                fix="train without callbacks.capture.enabled, and index a checkpoint",
            )


def corrected(gradient_OI: Tensor, correction: Correction | None) -> Tensor:
    """A dense gradient, float32 [O, I], with what its rows are corrected with."""
    match correction:
        case Full(w_OI):
            return gradient_OI * w_OI.to(gradient_OI)
        case Factored(r_O, c_I):
            return gradient_OI * torch.outer(r_O, c_I).to(gradient_OI)
        case None:
            return gradient_OI
