"""Rows in eight bits per number. Legend: N rows, D dims, M modules."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.index.codecs.base import Codec, Fields
from headwater.kernels.coded import Format


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

    @property
    def form(self) -> Format:
        return Format(8, 1, 0, tuple(span.dims for span in self.layout))

    def block(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        code_ND, scale_NM = fields["code"], fields["scale"].to(dtype)
        out_ND = torch.empty_like(code_ND, dtype=dtype)
        for m, span in enumerate(self.layout):
            torch.mul(code_ND[:, span.slice], scale_NM[:, m : m + 1], out=out_ND[:, span.slice])
        return out_ND
