"""Rows as a few products of signs. N rows, c terms, O and I the projected sides of a module.

A module's part of a row is a matrix [O, I] of low rank: a passage of T tokens adds up T outer products. It is kept as
sum over c terms of scale x s t^T with s and t of +-1, a bit for each of O + I numbers and one scale a term, where the
signs of the matrix itself take O x I bits: so many more dimensions a side fit into the same bytes. Factors of rank-c
rows are LoRIF's (Li et al. 2026) idea; that they are signs is ours.

The terms are found one after the other, each on what the ones before have left (the cut decomposition of Frieze and
Kannan, 1999): for a rest R the best s is sign(R t), and the best t is sign(R^T s), in turn; the scale is
s^T R t / (O I).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.index.codecs.base import Codec, Fields
from headwater.attribution.rows.layout import ModuleSpan

POWER_STEPS, SIGN_STEPS = 2, 4
"""Steps of the power method from the longest row of what is left, and rounds of signs in turn after them."""


class FactorsCodec(Codec):
    """`terms` products of signs a module; the bits of s and t of all terms, module by module, in `code`."""

    terms: int

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, int]]:
        width = sum(self._bytes_of(span) for span in self.layout)
        return {"code": (torch.uint8, width), "scale": (torch.bfloat16, self.terms * len(self.layout))}

    def _bytes_of(self, span: ModuleSpan) -> int:
        return self.terms * -(-(span.k_out + span.k_in) // 8)

    def encode(self, unit_ND: Tensor) -> dict[str, Tensor]:
        codes, scales = [], []
        for span in self.layout:
            rest_NOI = unit_ND[:, span.slice].reshape(-1, span.k_out, span.k_in).float().clone()
            for _ in range(self.terms):
                s_NO, t_NI = best_signs(rest_NOI)
                along_N = torch.bmm(s_NO[:, None, :], torch.bmm(rest_NOI, t_NI[:, :, None]))[:, 0, 0]
                # Rounded to bf16 first, so that what is left is what the stored scale leaves.
                scale_N = (along_N / (span.k_out * span.k_in)).to(torch.bfloat16)
                rest_NOI.baddbmm_(s_NO[:, :, None] * -scale_N.float()[:, None, None], t_NI[:, None, :])
                codes.append(torch.from_numpy(np.packbits((torch.cat([s_NO, t_NI], dim=1) > 0).numpy(), axis=1)))
                scales.append(scale_N)
        return {"code": torch.cat(codes, dim=1), "scale": torch.stack(scales, dim=1)}

    def block(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        out_ND = fields["code"].new_empty(len(fields["code"]), self.layout.dims, dtype=dtype)
        places_8, start = torch.arange(7, -1, -1, dtype=torch.uint8, device=out_ND.device), 0
        for m, span in enumerate(self.layout):
            width, sides = self._bytes_of(span), span.k_out + span.k_in
            code_NcB = fields["code"][:, start : start + width].reshape(len(out_ND), self.terms, -1)
            bits_Ncs = (code_NcB[..., None] >> places_8 & 1).flatten(2)[:, :, :sides]
            signs_Ncs = bits_Ncs.float().mul_(2).sub_(1)
            scale_Nc = fields["scale"][:, m * self.terms : (m + 1) * self.terms].float()
            s_NcO, t_NcI = signs_Ncs.split([span.k_out, span.k_in], dim=2)
            part_NOI = torch.bmm((s_NcO * scale_Nc[:, :, None]).transpose(1, 2), t_NcI)
            out_ND[:, span.slice] = part_NOI.flatten(1)
            start += width
        return out_ND


def best_signs(rest_NOI: Tensor) -> tuple[Tensor, Tensor]:
    """Signs s [N, O] and t [N, I] that make s^T R t large, float32; the same for the same matrix in any block."""
    longest_N = rest_NOI.square().sum(dim=2).argmax(dim=1)
    t_NI1 = rest_NOI[torch.arange(len(rest_NOI)), longest_N][:, :, None]
    for _ in range(POWER_STEPS):
        t_NI1 = torch.bmm(rest_NOI.transpose(1, 2), torch.bmm(rest_NOI, t_NI1))
        t_NI1 = t_NI1 / t_NI1.norm(dim=1, keepdim=True).clamp_min(1e-30)
    t_NI1 = signs(t_NI1)
    s_NO1 = signs(torch.bmm(rest_NOI, t_NI1))
    for _ in range(SIGN_STEPS):
        t_NI1 = signs(torch.bmm(rest_NOI.transpose(1, 2), s_NO1))
        s_NO1 = signs(torch.bmm(rest_NOI, t_NI1))
    return s_NO1[:, :, 0], t_NI1[:, :, 0]


def signs(values: Tensor) -> Tensor:
    """+1 where a value is positive, else -1."""
    return (values > 0).float().mul_(2).sub_(1)


class Factors4Codec(FactorsCodec):
    name, terms = "factors4", 4


class Factors8Codec(FactorsCodec):
    name, terms = "factors8", 8


class Factors16Codec(FactorsCodec):
    name, terms = "factors16", 16
