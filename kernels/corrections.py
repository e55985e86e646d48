"""What a gradient is multiplied by before it is projected, and the layer that this makes with its two projections.

Shapes: O outputs and I inputs of a linear layer, kO x kI the projected gradient.
"""

from dataclasses import dataclass

import torch
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


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One linear layer as the kernels see it; checked when it is made."""

    left_Ok: Tensor
    """[O, kO] of +-1."""
    right_Ik: Tensor
    """[I, kI] of +-1."""
    correction: Correction | None

    def __post_init__(self) -> None:
        if self.left_Ok.ndim != 2 or self.right_Ik.ndim != 2:
            shapes = f"{list(self.left_Ok.shape)} and {list(self.right_Ik.shape)}"
            raise ValueError(f"left must be [O, kO] and right [I, kI], got {shapes}")
        outputs, inputs = self.left_Ok.shape[0], self.right_Ik.shape[0]
        match self.correction:
            case None:
                expected = {}
            case Full(w_OI):
                expected = {"w_OI": (w_OI, [outputs, inputs])}
            case Factored(r_O, c_I):
                expected = {"r_O": (r_O, [outputs]), "c_I": (c_I, [inputs])}
            case other:
                raise ValueError(f"a correction is None, Full(w_OI) or Factored(r_O, c_I), got {type(other).__name__}")
        for name, (tensor, shape) in expected.items():
            if list(tensor.shape) != shape:
                raise ValueError(f"{type(self.correction).__name__}: {name} must be {shape}, got {list(tensor.shape)}")
        for tensor in (self.right_Ik, *(tensor for tensor, _ in expected.values())):
            if tensor.device != self.left_Ok.device:
                raise ValueError(
                    f"left, right and correction must be on one device, got {self.left_Ok.device} and {tensor.device}"
                )

    @property
    def sides(self) -> tuple[int, int]:
        """kO and kI."""
        return self.left_Ok.shape[1], self.right_Ik.shape[1]

    def fold_left(self) -> Tensor:
        """[O, kO] float32: the left projection with its half of a rank-1 correction."""
        left_Ok = self.left_Ok.to(torch.float32)
        return left_Ok * self.correction.r_O.float()[:, None] if isinstance(self.correction, Factored) else left_Ok

    def fold_right(self) -> Tensor:
        """[I, kI] float32: the right projection with its half of a rank-1 correction."""
        right_Ik = self.right_Ik.to(torch.float32)
        return right_Ik * self.correction.c_I.float()[:, None] if isinstance(self.correction, Factored) else right_Ik


def pad_columns(factor_Kk: Tensor, multiple: int) -> Tensor:
    """[K, k'] with zero columns up to the next multiple."""
    return torch.nn.functional.pad(factor_Kk, (0, -factor_Kk.shape[1] % multiple))


def shared_rights(layers: list[Layer], multiple: int) -> tuple[Tensor, list[slice]]:
    """The folded right projections of layers with one input, side by side, and the columns of each layer.

    Each is padded with zero columns to a multiple of `multiple`. Layers whose right side is the very same (one sign
    matrix, no rank-1 factor) get the same columns.

    Returns:
        [I, K] float32 and one slice of 0..K per layer.
    """
    pieces: list[Tensor] = []
    columns: list[slice] = []
    seen: dict[tuple[int, int], slice] = {}
    width = 0
    for layer in layers:
        factor = layer.correction.c_I if isinstance(layer.correction, Factored) else None
        identity = (id(layer.right_Ik), id(factor))
        if identity not in seen:
            pieces.append(pad_columns(layer.fold_right(), multiple))
            seen[identity] = slice(width, width + pieces[-1].shape[1])
            width = seen[identity].stop
        columns.append(seen[identity])
    return torch.cat(pieces, dim=1), columns
