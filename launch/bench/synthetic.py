"""Synthetic gradient rows: heavy tails, a decaying spectrum, clusters that share directions, very unequal norms."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.rows.layout import RowLayout


class RowMaker:
    """Draws raw rows from one made-up world.

    Args:
        layout: of the rows.
        seed: of the world: the spectrum's directions and the topics.
        topics: clusters; every row belongs to one or two.
    """

    def __init__(self, layout: RowLayout, seed: int = 0, topics: int = 12) -> None:
        self.layout, self.topics = layout, topics
        world = torch.Generator().manual_seed(seed)
        self._spread, self._bases, self._centres = [], [], []
        for span in layout:
            spread_d = torch.arange(1, span.dims + 1).float() ** -0.8
            self._bases.append(torch.linalg.qr(torch.randn(span.dims, span.dims, generator=world)).Q)
            self._centres.append(torch.randn(topics, span.dims, generator=world) * spread_d.sqrt())
            self._spread.append(spread_d)

    def rows(self, count: int, seed: int) -> Tensor:
        """Raw rows, float32 [count, D]; the same for the same seed."""
        draw = torch.Generator().manual_seed(seed)
        topic_NT = torch.zeros(count, self.topics)
        topic_NT.scatter_(1, torch.randint(self.topics, (count, 2), generator=draw), 1.0)
        out_ND = torch.empty(count, self.layout.dims)
        for span, spread_d, basis_dd, centres_Td in zip(
            self.layout, self._spread, self._bases, self._centres, strict=True
        ):
            noise_Nd = torch.randn(count, span.dims, generator=draw) * spread_d
            tails_N1 = torch.exp(0.6 * torch.randn(count, 1, generator=draw))
            torch.mm((0.3 * topic_NT @ centres_Td + noise_Nd) * tails_N1, basis_dd, out=out_ND[:, span.slice])
        return out_ND.mul_(torch.exp(1.5 * torch.randn(count, 1, generator=draw)) * 1e-3)
