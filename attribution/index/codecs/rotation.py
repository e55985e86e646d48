"""Fixed orthogonal maps that spread a module's numbers evenly, so that a few bits each serve all of them.

A Walsh-Hadamard matrix between random signs makes every coordinate nearly Gaussian with the same variance, whatever the
row. It is the Kronecker product of two small ones, so that a row of d numbers takes two products with matrices of about
sqrt(d) x sqrt(d), and no d x d matrix is ever made. The matrices hold only +-1/sqrt(p), made without any linear algebra
library: the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

VERSION = 2
"""Of the map. Version 1, of indexes that say nothing, has no second signs, so that a vector which lies in one
coordinate comes out nearly so where d is just above a power of two; and its shuffles take as long as all the rest."""


@lru_cache(maxsize=32)
def hadamard_matrix(size: int) -> Tensor:
    """The Walsh-Hadamard matrix, scaled to be orthogonal, float32 [size, size]; size is a power of two. Symmetric."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix / size**0.5


def hadamard(rows_Nd: Tensor) -> Tensor:
    """The Walsh-Hadamard transform of each row, scaled to be orthogonal; d is a power of two. float32 [n, d]."""
    bits = rows_Nd.shape[1].bit_length() - 1
    low = 1 << (bits // 2)
    high = rows_Nd.shape[1] // low
    inner = rows_Nd.reshape(-1, low) @ hadamard_matrix(low)
    return torch.matmul(hadamard_matrix(high), inner.view(-1, high, low)).flatten(1)


@dataclass(frozen=True)
class Round:
    """One round of the map: signs, a transform of the first numbers, signs, one of the last, a new order.

    Where d is no power of two, the largest that fits transforms the first and then the last coordinates, which
    overlap by at least one; a second round, in the new order, mixes what did not meet.

    Attributes:
        power: coordinates of a transform.
        first_signs_d, last_signs_d: before each of the two, float32 [d].
        order_d: the new order, int64 [d], in version 1; later ones move all by half a transform, which costs less.
    """

    power: int
    first_signs_d: Tensor
    last_signs_d: Tensor | None
    order_d: Tensor | None

    def forth(self, rows_Nd: Tensor) -> Tensor:
        out_Nd = rows_Nd * self.first_signs_d
        power, rest = self.power, rows_Nd.shape[1] - self.power
        out_Nd[:, :power] = hadamard(out_Nd[:, :power])
        if not rest:
            return out_Nd
        if self.last_signs_d is not None:
            out_Nd *= self.last_signs_d
        out_Nd[:, rest:] = hadamard(out_Nd[:, rest:])
        return out_Nd.roll(power // 2, dims=1) if self.order_d is None else out_Nd[:, self.order_d]

    def back(self, rows_Nd: Tensor) -> Tensor:
        out_Nd = rows_Nd.clone()
        power, rest = self.power, rows_Nd.shape[1] - self.power
        if rest:
            if self.order_d is None:
                out_Nd = rows_Nd.roll(-(power // 2), dims=1)
            else:
                out_Nd[:, self.order_d] = rows_Nd
            out_Nd[:, rest:] = hadamard(out_Nd[:, rest:])
            if self.last_signs_d is not None:
                out_Nd *= self.last_signs_d
        out_Nd[:, :power] = hadamard(out_Nd[:, :power])
        return out_Nd.mul_(self.first_signs_d)


@lru_cache(maxsize=64)
def rounds_of(dims: int, version: int) -> tuple[Round, ...]:
    """The rounds of the map of d numbers, drawn by d."""
    draw = np.random.Generator(np.random.Philox(key=dims))
    power = 1 << (dims.bit_length() - 1)

    def signs() -> Tensor:
        return torch.from_numpy(draw.integers(0, 2, dims) * 2.0 - 1.0).float()

    if power == dims:
        return (Round(power, signs(), None, None),)
    if version == 1:
        return tuple(Round(power, signs(), None, torch.from_numpy(draw.permutation(dims))) for _ in range(2))
    return tuple(Round(power, signs(), signs(), None) for _ in range(2))


def rotate(rows_Nd: Tensor, version: int = VERSION) -> Tensor:
    """Takes rows, float32 [n, d], into the coordinates in which they are spread."""
    for each in rounds_of(rows_Nd.shape[1], version):
        rows_Nd = each.forth(rows_Nd)
    return rows_Nd


def rotate_back(rows_Nd: Tensor, version: int = VERSION) -> Tensor:
    """What `rotate` takes to these, float32 [n, d]."""
    for each in reversed(rounds_of(rows_Nd.shape[1], version)):
        rows_Nd = each.back(rows_Nd)
    return rows_Nd
