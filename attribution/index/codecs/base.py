"""What a codec is: one way to store rows, of fixed width.

A codec stores the direction of a whitened row; its exact norm is kept beside it in float32. Legend: N rows, D dims,
M modules, B bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from headwater.attribution.rows.layout import RowLayout

Fields = Mapping[str, Tensor]
"""The stored tensors of a block of rows, first axis N."""


class Codec(ABC):
    """One way to store rows.

    A codec may keep rows in coordinates of its own, reached by an orthogonal map: `block` gives rows in them and
    `rotate` takes other vectors there, so that inner products need no way back. `decode` gives the true coordinates.
    """

    name: str
    #: int8 planes that queries are split into for integer products; 0 for rows that are not stored as integers
    planes: int = 0
    #: a stored number is (gain * code - offset) * scale
    gain: int = 1
    offset: int = 0

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout

    @property
    @abstractmethod
    def fields(self) -> dict[str, tuple[torch.dtype, int]]:
        """Name -> (dtype, numbers per row) of the stored tensors, norms aside."""

    @abstractmethod
    def encode(self, unit_ND: Tensor) -> dict[str, Tensor]:
        """Stored tensors of rows of unit norm, float32 [N, D]."""

    @abstractmethod
    def block(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        """Rows of about unit norm in the codec's own coordinates, dtype [N, D]."""

    def codes(self, fields: Fields, m: int) -> Tensor:
        """Codes of module m in the codec's own coordinates, int8 [N, d]; for codecs that have planes."""
        raise NotImplementedError(f"{self.name} rows are not stored as integers")

    def rotate(self, vectors_ND: Tensor) -> Tensor:
        """Takes true vectors [n, D] into the codec's own coordinates."""
        return vectors_ND

    def decode(self, fields: Fields) -> Tensor:
        """Rows of about unit norm in the true coordinates, float32 [N, D]."""
        return self.block(fields, torch.float32)

    @property
    def working_bytes(self) -> int:
        """Bytes per row of a block while it is compared."""
        return self.layout.dims * (1 if self.planes else 4)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one stored row without its norms."""
        return sum(dtype.itemsize * width for dtype, width in self.fields.values())
