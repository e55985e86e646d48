"""How the passages of an index are divided: into shards, which are files, and these into windows, the units of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.attribution.curvature.whitening import BLOCK
from headwater.attribution.index.codecs.registry import make_codec
from headwater.attribution.index.manifest import NORMS
from headwater.attribution.rows.layout import RowLayout

WINDOW_BYTES = 64 << 20
"""Rows that a rank has in hand, in float32."""
SHARD_BYTES = 2 << 30
"""A shard's file is not larger."""


def bytes_per_passage(layout: RowLayout, codec: str) -> int:
    """Bytes that a codec stores of a row, norms included."""
    return make_codec(codec, layout).bytes_per_row + sum(dtype.itemsize for dtype in NORMS.values())


def default_shard_rows(dims: int) -> int:
    """Passages of a window, a multiple of the product block, so that its rows take about 64 MiB in float32."""
    return max(WINDOW_BYTES // (4 * dims) // BLOCK, 1) * BLOCK


def fitting_shard_rows(passages: int, window: int, row_bytes: int) -> int:
    """Passages per shard: whole windows, as many as fit into `SHARD_BYTES`, or all. Ranks share out windows of a build
    and blocks of a scan, not shards; what is done once a shard is done seldom.

    Args:
        passages: of the corpus.
        window: passages of a window.
        row_bytes: what the widest codec stores of a row.
    """
    return max(min(-(-passages // window), SHARD_BYTES // (window * row_bytes)), 1) * window


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of an index's passages: no shard ends within one.

    Attributes:
        passages: of the corpus.
        shard_rows: passages of a shard; the last may have fewer.
        rows: passages of a window; the last of a shard may have fewer.
    """

    passages: int
    shard_rows: int
    rows: int

    @classmethod
    def of(cls, passages: int, layout: RowLayout, codecs: Sequence[str], shard_rows: int | None = None) -> Windows:
        """Those of an index; with as many passages a shard as `fitting_shard_rows` says, if that is not given."""
        window = default_shard_rows(layout.dims)
        widest = max(bytes_per_passage(layout, codec) for codec in codecs)
        shard_rows = shard_rows or fitting_shard_rows(passages, window, widest)
        return cls(passages, shard_rows, min(window, shard_rows))

    @property
    def shards(self) -> int:
        return -(-self.passages // self.shard_rows)

    @property
    def in_shard(self) -> int:
        """Windows of a shard; the last shard may have fewer."""
        return -(-self.shard_rows // self.rows)

    def __len__(self) -> int:
        last = self.passages - (self.shards - 1) * self.shard_rows
        return (self.shards - 1) * self.in_shard + -(-last // self.rows)

    def shard_span(self, shard: int) -> tuple[int, int]:
        """Passages [start, stop) of a shard."""
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.passages)

    def span(self, window: int) -> tuple[int, int]:
        """Passages [start, stop) of a window."""
        shard, place = divmod(window, self.in_shard)
        start = shard * self.shard_rows + place * self.rows
        return start, min(start + self.rows, self.shard_span(shard)[1])
