"""Rows in a floating-point format."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.index.codecs.base import Codec, Fields


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
