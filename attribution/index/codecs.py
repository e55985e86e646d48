"""How a row is stored: codecs of fixed width behind one interface.

A codec stores the direction of a whitened row; its exact norm is kept beside it in float32. Legend: N rows, D dims,
M modules, B bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from headwater.attribution.index.layout import RowLayout
from headwater.configs.errors import UserError

Fields = Mapping[str, Tensor]
"""The stored tensors of a block of rows, first axis N."""


class Codec(ABC):
    """One way to store rows.

    A codec may keep rows in coordinates of its own, reached by an orthogonal map: `block` gives rows in them and
    `rotate` takes other vectors there, so that inner products need no way back. `decode` gives the true coordinates.
    """

    name: str
    #: number format in which the scan multiplies by default
    compute: torch.dtype = torch.bfloat16

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

    def rotate(self, vectors_ND: Tensor) -> Tensor:
        """Takes true vectors [n, D] into the codec's own coordinates."""
        return vectors_ND

    def decode(self, fields: Fields) -> Tensor:
        """Rows of about unit norm in the true coordinates, float32 [N, D]."""
        return self.block(fields, torch.float32)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one stored row without its norms."""
        return sum(dtype.itemsize * width for dtype, width in self.fields.values())


class PlainCodec(Codec):
    """Rows as they are, in a floating-point format."""

    dtype: torch.dtype

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, int]]:
        return {"row": (self.dtype, self.layout.dims)}

    def encode(self, unit_ND: Tensor) -> dict[str, Tensor]:
        return {"row": unit_ND.to(self.dtype)}

    def block(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        return fields["row"].to(dtype)


class Float32Codec(PlainCodec):
    name, dtype, compute = "fp32", torch.float32, torch.float32


class BFloat16Codec(PlainCodec):
    name, dtype = "bf16", torch.bfloat16


class Int8Codec(Codec):
    """int8 with one scale per module: the largest magnitude is 127 steps."""

    name = "int8"

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, int]]:
        return {"code": (torch.int8, self.layout.dims), "scale": (torch.bfloat16, len(self.layout))}

    def encode(self, unit_ND: Tensor) -> dict[str, Tensor]:
        code_ND = torch.empty(unit_ND.shape, dtype=torch.int8)
        scale_NM = torch.empty(len(unit_ND), len(self.layout), dtype=torch.bfloat16)
        for m, span in enumerate(self.layout):
            part_Nd = unit_ND[:, span.slice]
            # Rounded to bf16 first, so that the codes fit the scale that is stored.
            scale_NM[:, m] = (part_Nd.abs().amax(dim=1) / 127).to(torch.bfloat16)
            step_N1 = scale_NM[:, m : m + 1].float()
            code_ND[:, span.slice] = (part_Nd / step_N1.clamp_min(1e-30)).round_().clamp_(-127, 127).to(torch.int8)
        return {"code": code_ND, "scale": scale_NM}

    def block(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        code_ND, scale_NM = fields["code"], fields["scale"].to(dtype)
        out_ND = torch.empty(code_ND.shape, dtype=dtype)
        for m, span in enumerate(self.layout):
            torch.mul(code_ND[:, span.slice], scale_NM[:, m : m + 1], out=out_ND[:, span.slice])
        return out_ND


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Float32Codec, BFloat16Codec, Int8Codec)}


def make_codec(name: str, layout: RowLayout) -> Codec:
    """The codec of that name.

    Raises:
        UserError: there is none.
    """
    if name not in CODECS:
        raise UserError("unknown codec", got=name, expected=", ".join(CODECS), fix="choose one of these")
    return CODECS[name](layout)
