"""Optimizer correction: what a gradient is divided by, from Adam's own second moment.

`adam` divides elementwise by sqrt(v) + eps. `adafactor` replaces v by its rank-1 estimate r c^T / mean(r), with the row
means r and the column means c (Shazeer and Stern 2018, arXiv 1804.04235), which folds into the projections.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.models.base import EPS, Site
from headwater.configs.errors import MismatchError
from headwater.kernels import Correction, Factored, Full

SMALLEST = 1e-30
"""In place of an epsilon of 0: a weight that has never had a gradient has a moment of 0, and is not divided by it."""


def correction_for(kind: str, moment_OI: Tensor | None, site: Site) -> Correction | None:
    """The correction of the part of a layer that this rank holds; arguments and errors as in `whole_correction`."""
    return part_of(whole_correction(kind, moment_OI, site.name, site.shape), site)


def whole_correction(
    kind: str, moment_OI: Tensor | None, name: str, shape: tuple[int, int], eps: float = EPS
) -> Correction | None:
    """The correction of a whole layer.

    Args:
        kind: none, adam or adafactor.
        moment_OI: Adam's second moment of the whole layer, float32, without bias; unused by none.
        name, shape: the layer's, (O, I).
        eps: Adam's.

    Raises:
        MismatchError: its shape is not the layer's (never broadcast), or it is negative or not finite.
    """
    if kind == "none":
        return None
    if moment_OI is None or tuple(moment_OI.shape) != shape:
        got = None if moment_OI is None else tuple(moment_OI.shape)
        turned = " (transposed?)" if got == shape[::-1] else ""
        raise MismatchError(
            f"the second moment of {name} has another shape than the layer{turned}",
            got=got,
            expected=shape,
            fix="use the optimizer state that was saved with this model",
        )
    if not bool(torch.isfinite(moment_OI).all()) or bool((moment_OI < 0).any()):
        raise MismatchError(
            f"the second moment of {name} is not one", got="negative or not finite", expected="finite, >= 0"
        )
    moment_OI = moment_OI.float()
    eps = max(eps, SMALLEST)
    if kind == "adam":
        return Full(1.0 / (moment_OI.sqrt() + eps))
    rows_O, columns_I = moment_OI.mean(dim=1), moment_OI.mean(dim=0)
    mean = rows_O.mean().clamp_min(max(eps**2, SMALLEST))
    return Factored(1.0 / ((rows_O / mean).sqrt() + eps), 1.0 / (columns_I.sqrt() + eps))


def part_of(correction: Correction | None, site: Site) -> Correction | None:
    """What a whole layer's correction is for the part that this rank holds."""
    match correction:
        case Full(w_OI):
            return Full(take(take(w_OI, 0, site.out_parts), 1, site.in_parts).contiguous())
        case Factored(r_O, c_I):
            return Factored(take(r_O, 0, site.out_parts), take(c_I, 0, site.in_parts))
    return None


def take(tensor: Tensor, dim: int, parts: list[tuple[int, int]]) -> Tensor:
    """The given ranges of a dimension, end to end."""
    if parts == [(0, tensor.shape[dim])]:
        return tensor
    return torch.cat([tensor.narrow(dim, start, stop - start) for start, stop in parts], dim=dim)
