"""Synthetic gradient rows: heavy tails, a decaying spectrum, clusters that share directions, very unequal norms."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.index.layout import RowLayout


def make_rows(layout: RowLayout, rows: int, seed: int = 0, *, topics: int = 12, rows_seed: int | None = None) -> Tensor:
    """float32 [rows, D]. `seed` draws the world, `rows_seed` the rows in it."""
    world = torch.Generator().manual_seed(seed)
    draw = torch.Generator().manual_seed(seed + 1 if rows_seed is None else rows_seed)
    out_ND = torch.empty(rows, layout.dims)
    topic_NT = torch.zeros(rows, topics)
    topic_NT.scatter_(1, torch.randint(topics, (rows, 2), generator=draw), 1.0)
    for span in layout:
        basis_dd = torch.linalg.qr(torch.randn(span.dims, span.dims, generator=world)).Q
        spread_d = torch.arange(1, span.dims + 1).float() ** -0.8
        centres_Td = torch.randn(topics, span.dims, generator=world) * spread_d.sqrt()
        noise_Nd = torch.randn(rows, span.dims, generator=draw) * spread_d
        tails_N1 = torch.exp(0.6 * torch.randn(rows, 1, generator=draw))
        out_ND[:, span.slice] = ((0.3 * topic_NT @ centres_Td + noise_Nd) * tails_N1) @ basis_dd
    return out_ND * torch.exp(1.5 * torch.randn(rows, 1, generator=draw)) * 1e-3
