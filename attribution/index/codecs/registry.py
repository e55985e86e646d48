"""The codecs: floating point, int8, and (packed.py) int4 and sign. Legend: N rows, D dims, M modules."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.index.codecs.base import Codec, Fields
from headwater.attribution.index.codecs.packed import Int4Codec, SignCodec
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import UserError


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
    name, dtype = "fp32", torch.float32


class BFloat16Codec(PlainCodec):
    name, dtype = "bf16", torch.bfloat16


class Int8Codec(Codec):
    """int8 with one scale per module: the largest magnitude is 127 steps."""

    name, planes = "int8", 2

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

    def codes(self, fields: Fields, m: int) -> Tensor:
        return fields["code"][:, self.layout.spans[m].slice]

    def block(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        code_ND, scale_NM = fields["code"], fields["scale"].to(dtype)
        out_ND = torch.empty(code_ND.shape, dtype=dtype)
        for m, span in enumerate(self.layout):
            torch.mul(code_ND[:, span.slice], scale_NM[:, m : m + 1], out=out_ND[:, span.slice])
        return out_ND


CODECS: dict[str, type[Codec]] = {
    codec.name: codec for codec in (Float32Codec, BFloat16Codec, Int8Codec, Int4Codec, SignCodec)
}


def make_codec(name: str, layout: RowLayout) -> Codec:
    """The codec of that name.

    Raises:
        UserError: there is none.
    """
    if name not in CODECS:
        raise UserError("unknown codec", got=name, expected=", ".join(CODECS), fix="choose one of these")
    return CODECS[name](layout)
