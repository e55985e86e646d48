"""What is stored of a row: its direction after whitening, and two exact norms."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.rows.norms import row_norms


def directions_and_norms(whitening: Whitening, raw_ND: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of raw rows, float [n, D].

    Returns:
        Whitened rows of unit norm, float32 [n, D] (a row of zeros stays zero), which a codec encodes; and
        `norm` and `raw_norm`, float32 [n], after and before whitening, which every codec stores as they are.
    """
    white_ND = whitening.apply(raw_ND)
    norms = {"norm": row_norms(white_ND), "raw_norm": row_norms(raw_ND)}
    return white_ND.div_(norms["norm"].clamp_min(torch.finfo(torch.float32).tiny)[:, None]), norms
