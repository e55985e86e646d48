"""What the Triton kernels share: sides that tensor cores take, and products with signs that lose nothing.

Shapes: a letter is an index tile of the kernel at hand.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SIDE_LIMIT = 64
"""Columns of a sign matrix that one launch takes; wider ones go in pieces."""

PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
"""How many bf16 numbers stand for one float32 in products with signs: 9, 17 and 25 bits. float16 itself could not hold
a corrected gradient, whose size is that of Adam's updates times the number of tokens."""


def chunks(factor_Kk: Tensor) -> list[Tensor]:
    """[K, k] as pieces of at most `SIDE_LIMIT` columns."""
    return list(factor_Kk.split(SIDE_LIMIT, dim=1)) or [factor_Kk]


def pad_side(factor_Kk: Tensor) -> Tensor:
    """[K, k'] contiguous, with zero columns up to a power of two that is at least 16."""
    columns = factor_Kk.shape[1]
    width = max(16, 1 << (columns - 1).bit_length())
    return torch.nn.functional.pad(factor_Kk, (0, width - columns)).contiguous()


@triton.jit
def sign_dot(x_MK, signs_KN, sum_MN, PARTS: tl.constexpr):
    """sum + x signs, with float32 x cut into `PARTS` bf16 numbers; signs are exact in bf16."""
    for _ in tl.static_range(PARTS):
        part_MK = x_MK.to(tl.bfloat16)
        sum_MN = tl.dot(part_MK, signs_KN, sum_MN)
        x_MK -= part_MK.to(tl.float32)
    return sum_MN
