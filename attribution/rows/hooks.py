"""Hooks on linear layers that project each layer's gradient as a backward pass goes by.

Shared by the rows of given examples (collector.py) and the rows of a running training (capture/).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwater.attribution.models.base import Site
from headwater.attribution.rows.layout import RowLayout
from headwater.kernels import Correction, SharedProjector, signs


@dataclass(slots=True)
class Target:
    """Where the rows of one forward and backward pass go.

    Attributes:
        rows_BD: float32 [segments, D], filled module by module.
        bounds: where the segments begin and end in the flattened tokens, rising, [segments + 1].
    """

    rows_BD: Tensor
    bounds: list[int]


class Watcher:
    """The projections of some layers, and hooks that fill a target with their rows.

    Args:
        sites: the linear layers on this rank.
        layout: of the rows; a site that is not in it is left alone.
        seed: of the +-1 matrices.
        device: where the layers are.
        whole: brings inputs or output gradients [t, F] that a rank has only a part of to [T, F]; None if it has all.
    """

    def __init__(
        self,
        sites: list[Site],
        layout: RowLayout,
        seed: int,
        device: torch.device,
        whole: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.spans = {span.name: span for span in layout}
        self.device, self.whole = device, whole
        self.groups: dict[str, list[Site]] = {}
        for site in sites:
            if site.name in self.spans:
                self.groups.setdefault(site.shared, []).append(site)
        self._signs = {key: self._sign_matrices(group, seed) for key, group in self.groups.items()}
        self.projectors: dict[str, SharedProjector] = {}

    def _sign_matrices(self, group: list[Site], seed: int) -> tuple[list[Tensor], list[Tensor]]:
        lefts, rights = [], []
        for site in group:
            span = self.spans[site.name]
            lefts.append(sign_parts(seed, f"{site.name}/out", site.shape[0], span.k_out, site.out_parts))
            rights.append(sign_parts(seed, f"{site.shared}/in", site.shape[1], span.k_in, site.in_parts))
        lefts, rights = [x.to(self.device) for x in lefts], [x.to(self.device) for x in rights]
        # One tensor for all sites of a group lets the kernels make its product with the inputs once.
        if all(right.shape == rights[0].shape for right in rights):
            rights = [rights[0]] * len(rights)
        return lefts, rights

    @property
    def sites(self) -> list[Site]:
        """The watched layers."""
        return [site for group in self.groups.values() for site in group]

    def correct(self, correction: Callable[[Site], Correction | None]) -> None:
        """Folds corrections (of the part of a layer that is here) into the projections, in place of earlier ones."""
        for key, group in self.groups.items():
            made = [moved(correction(site), self.device) for site in group]
            self.projectors[key] = SharedProjector(*self._signs[key], made)

    def attach(self, target_of: Callable[[Site], Target | None]) -> list[Any]:
        """Registers the hooks and returns their handles.

        With frozen weights the graph begins at the first watched layer's output: nothing before it is differentiated.

        Args:
            target_of: asked at each forward pass of a layer that will be differentiated: one object for all layers of
                a pass; None: this one is not watched.
        """
        waiting: dict[tuple[str, int], dict[str, Tensor]] = {}

        def watch(site: Site) -> Any:
            def forward(module: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
                out = output[0] if isinstance(output, tuple) else output
                target = target_of(site) if torch.is_grad_enabled() else None
                if target is not None:
                    out.requires_grad_()
                    a_TI = flat(inputs[0])
                    out.register_hook(lambda delta: arrived(site, flat(delta), a_TI, target))

            return forward

        def arrived(site: Site, delta_TO: Tensor, a_TI: Tensor, target: Target) -> None:
            group = self.groups[site.shared]
            if len(group) == 1:
                self._fill(group, [delta_TO], a_TI, target)
                return
            key = (site.shared, id(target))
            deltas = waiting.setdefault(key, {})
            deltas[site.name] = delta_TO
            if len(deltas) == len(group):
                del waiting[key]
                self._fill(group, [deltas[member.name] for member in group], a_TI, target)

        return [site.module.register_forward_hook(watch(site)) for site in self.sites]

    def _fill(self, group: list[Site], deltas: list[Tensor], a_TI: Tensor, target: Target) -> None:
        if self.whole is not None:
            a_TI = self.whole(a_TI, target.bounds[-1])
            deltas = [self.whole(delta_TO, target.bounds[-1]) for delta_TO in deltas]
        parts = self.projectors[group[0].shared].rows(deltas, a_TI, target.bounds)
        for site, part in zip(group, parts, strict=True):
            target.rows_BD[:, self.spans[site.name].slice] = part.flatten(1).to(target.rows_BD.device)


def flat(x: Tensor) -> Tensor:
    """[..., F] -> [tokens, F], detached."""
    return x.detach().reshape(-1, x.shape[-1])


def sign_parts(seed: int, key: str, n: int, k: int, parts: list[tuple[int, int]]) -> Tensor:
    """The rows of the +-1 matrix [n, k] that stand for this rank's part of a dimension: [sum of parts, k]."""
    pieces = [signs(seed, key, n, k, start=start, stop=stop) for start, stop in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def moved(correction: Correction | None, device: torch.device) -> Correction | None:
    """The correction on a device."""
    if correction is None:
        return None
    return type(correction)(*(getattr(correction, name).to(device) for name in correction.__dataclass_fields__))
