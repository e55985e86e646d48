"""Fixed orthogonal maps that spread a module's numbers evenly, so that a few bits each serve all of them.

A Hadamard matrix between random signs makes every coordinate nearly Gaussian with the same variance, whatever the row.
The matrices hold only +-1/sqrt(p) products, made without any linear algebra library: the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def hadamard(rows_Nd: Tensor) -> Tensor:
    """The Walsh-Hadamard transform of each row, scaled to be orthogonal; d is a power of two. float32 [n, d]."""
    out_Nd, size, step = rows_Nd.clone(), rows_Nd.shape[1], 1
    while step < size:
        pairs = out_Nd.view(len(out_Nd), size // (2 * step), 2, step)
        out_Nd = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2).view(-1, size)
        step *= 2
    return out_Nd / size**0.5


@lru_cache(maxsize=16)
def rotation(dims: int) -> Tensor:
    """An orthogonal matrix, float32 [d, d]: rows @ rotation are spread.

    Where d is no power of two, the largest that fits transforms the first and then the last coordinates, which
    overlap by at least one (a second time, after a shuffle, to mix what did not meet).
    """
    draw = np.random.Generator(np.random.Philox(key=dims))
    power = 1 << (dims.bit_length() - 1)
    out_dd = torch.eye(dims)
    for _ in range(1 if power == dims else 2):
        out_dd = out_dd * torch.from_numpy(draw.integers(0, 2, dims) * 2.0 - 1.0).float()
        out_dd = torch.cat([hadamard(out_dd[:, :power]), out_dd[:, power:]], dim=1)
        if power < dims:
            out_dd = torch.cat([out_dd[:, : dims - power], hadamard(out_dd[:, dims - power :])], dim=1)
            out_dd = out_dd[:, torch.from_numpy(draw.permutation(dims))]
    return out_dd.contiguous()
