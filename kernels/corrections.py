"""What a gradient is divided by before it is projected.

Shapes: O outputs and I inputs of a linear layer.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Full:
    """An elementwise factor, as Adam's second moment gives it: G * w, with w = 1 / (sqrt(v) + eps)."""

    w_OI: Tensor
    """[O, I], floating."""


@dataclass(frozen=True, slots=True, eq=False)
class Factored:
    """A rank-1 factor, as Adafactor gives it: G * outer(r, c). It folds into the projections, at no cost per token."""

    r_O: Tensor
    """[O], floating."""
    c_I: Tensor
    """[I], floating."""


Correction = Full | Factored
