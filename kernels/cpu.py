"""The projection on a CPU, from the matrix products of PyTorch.

Shapes: T tokens of a packed sequence, O outputs, I inputs, B segments, kO x kI the projected gradient.
"""

import torch
from torch import Tensor


def segment_products(y_Tk: Tensor, z_Tk: Tensor, bounds: list[int]) -> Tensor:
    """[B, kO, kI] float32: y_b^T z_b for every segment b."""
    rows_Bkk = torch.zeros(len(bounds) - 1, y_Tk.shape[1], z_Tk.shape[1])
    for row_kk, first, last in zip(rows_Bkk, bounds[:-1], bounds[1:], strict=True):
        if last > first:
            torch.mm(y_Tk[first:last].T, z_Tk[first:last], out=row_kk)
    return rows_Bkk


def full_rows(
    delta_TO: Tensor, a_TI: Tensor, bounds: list[int], left_Ok: Tensor, right_Ik: Tensor, w_OI: Tensor
) -> Tensor:
    """[B, kO, kI] float32 with an elementwise correction; all arguments of one type."""
    rows_Bkk = torch.zeros(len(bounds) - 1, left_Ok.shape[1], right_Ik.shape[1])
    gradient_OI = torch.empty_like(w_OI)
    for row_kk, first, last in zip(rows_Bkk, bounds[:-1], bounds[1:], strict=True):
        if last > first:
            torch.mm(delta_TO[first:last].T, a_TI[first:last], out=gradient_OI)
            gradient_OI.mul_(w_OI)
            half_kI = torch.mm(left_Ok.T, gradient_OI)
            row_kk.copy_(torch.mm(half_kI, right_Ik))
    return rows_Bkk
