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
from headwater.kernels.coded import Format

Fields = Mapping[str, Tensor]
"""The stored tensors of a block of rows, first axis N."""


class Codec(ABC):
    """One way to store rows.

    A codec may keep rows in coordinates of its own, reached by an orthogonal map: `block` gives rows in them and
    `rotate` takes other vectors there, so that inner products need no way back. `decode` gives the true coordinates.
    """

    name: str
    planes: int = 0
    """Bytes of a query's number in integer products; 0 for rows that are not stored as integers."""

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
        """Rows of about unit norm in the codec's own coordinates, dtype [N, D], on the device of the stored tensors."""

    @property
    def form(self) -> Format | None:
        """How `code` and `scale` hold a row's integers; None for rows that are not stored as integers."""
        return None

    def rotate(self, vectors_ND: Tensor) -> Tensor:
        """Takes true vectors [n, D] into the codec's own coordinates."""
        return vectors_ND

    def decode(self, fields: Fields) -> Tensor:
        """Rows of about unit norm in the true coordinates, float32 [N, D]."""
        return self.block(fields, torch.float32)

    @property
    def working_bytes(self) -> int:
        """Bytes per row of a block while it is compared: integers are decoded on the way."""
        return self.bytes_per_row if self.planes else 4 * self.layout.dims

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one stored row without its norms."""
        return sum(dtype.itemsize * width for dtype, width in self.fields.values())
