"""Rows of a made-up world, in one call."""

from __future__ import annotations

from torch import Tensor

from headwater.attribution.rows.layout import RowLayout
from headwater.launch.bench.synthetic import RowMaker


def make_rows(layout: RowLayout, rows: int, seed: int = 0, *, rows_seed: int | None = None) -> Tensor:
    """Raw rows float32 [rows, D]. `seed` draws the world, `rows_seed` the rows in it."""
    return RowMaker(layout, seed).rows(rows, seed + 1 if rows_seed is None else rows_seed)
