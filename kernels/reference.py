"""The projection written out in float64, for tests to compare with. Slow, and nothing to get wrong.

For segment b with output gradients D_b and inputs A_b:  S_b = P_L^T (D_b^T A_b * W) P_R.

Shapes: T tokens of a packed sequence, B segments, O outputs, I inputs, kO x kI the projected gradient.
"""

from itertools import pairwise

import torch
from torch import Tensor

from .corrections import Correction, Factored, Full


def project(
    delta_TO: Tensor,
    a_TI: Tensor,
    cu_seqlens: Tensor,
    left_Ok: Tensor,
    right_Ik: Tensor,
    correction: Correction | None = None,
) -> Tensor:
    """Projected gradients [B, kO, kI] in float64; arguments as in `headwater.kernels.project`."""
    bounds = cu_seqlens.tolist()
    rows = []
    for first, last in pairwise(bounds):
        gradient_OI = delta_TO[first:last].double().T @ a_TI[first:last].double()
        if isinstance(correction, Full):
            gradient_OI = gradient_OI * correction.w_OI.double()
        if isinstance(correction, Factored):
            gradient_OI = gradient_OI * torch.outer(correction.r_O.double(), correction.c_I.double())
        rows.append(left_Ok.double().T @ gradient_OI @ right_Ik.double())
    if not rows:
        return torch.zeros(0, left_Ok.shape[1], right_Ik.shape[1], dtype=torch.float64)
    return torch.stack(rows)
