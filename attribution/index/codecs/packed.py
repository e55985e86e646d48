"""Rows in one, two or four bits per number. N rows, d dims of a module.

Each module is rotated (rotation.py), after which its numbers are nearly Gaussian, and quantised to 2^b evenly spaced
levels around zero, `(2 code - (2^b - 1)) step / 2`, with the step that is best for a Gaussian. The scale of a module's
part of a row is the least-squares one for the codes that were chosen.

One bit is taken of the numbers as they are: a sign does not care for outliers, and after a Kronecker-factored whitening
the unrotated signs find more gold passages (and agree as well with retrainings) than rotated ones do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.attribution.index.codecs.base import Codec, Fields
from headwater.attribution.index.codecs.rotation import VERSION, rotate, rotate_back
from headwater.attribution.rows.layout import RowLayout
from headwater.kernels.coded import Format

STEPS = {1: 1.5958, 2: 0.9957, 4: 0.3352}
"""Step of the uniform quantiser with the least squared error on a unit Gaussian (J. Max, 1960), by bits."""


class PackedCodec(Codec):
    """`bits` bits per number, packed into bytes module by module.

    A module of d numbers takes ceil(d * bits / 8) bytes; byte k holds the numbers k, k + w, k + 2w, ... (w bytes), the
    first in its lowest bits, so that unpacking writes runs of numbers and not single ones.
    """

    bits: int
    planes = 1

    def __init__(self, layout: RowLayout, rotation: int = VERSION) -> None:
        super().__init__(layout)
        self.rotation = rotation
        self.spreads = self.bits > 1 or rotation == 1
        self._places, at = [], 0
        for span in layout:
            width = -(-span.dims * self.bits // 8)
            self._places.append(slice(at, at + width))
            at += width
        self._bytes = at
        self.top = (1 << self.bits) - 1

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, int]]:
        return {"code": (torch.uint8, self._bytes), "scale": (torch.bfloat16, len(self.layout))}

    def rotate(self, vectors_ND: Tensor) -> Tensor:
        if not self.spreads:
            return vectors_ND.float()
        out_ND = torch.empty(vectors_ND.shape, dtype=torch.float32)
        for span in self.layout:
            out_ND[:, span.slice] = rotate(vectors_ND[:, span.slice].float(), self.rotation)
        return out_ND

    def decode(self, fields: Fields) -> Tensor:
        out_ND = self.block(fields, torch.float32)
        if not self.spreads:
            return out_ND
        for span in self.layout:
            out_ND[:, span.slice] = rotate_back(out_ND[:, span.slice], self.rotation)
        return out_ND

    def encode(self, unit_ND: Tensor) -> dict[str, Tensor]:
        rotated_ND = self.rotate(unit_ND)
        code_NB = torch.zeros(len(unit_ND), self._bytes, dtype=torch.uint8)
        scale_NM = torch.zeros(len(unit_ND), len(self.layout), dtype=torch.bfloat16)
        top = self.top
        for m, (span, place) in enumerate(zip(self.layout, self._places, strict=True)):
            part_Nd = rotated_ND[:, span.slice]
            rms_N1 = part_Nd.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-30)
            code_Nd = (part_Nd / (STEPS[self.bits] * rms_N1) + (top + 1) / 2).floor_().clamp_(0, top)
            level_Nd = 2 * code_Nd - top
            scale_NM[:, m] = (part_Nd * level_Nd).sum(dim=1) / level_Nd.square().sum(dim=1)
            code_NB[:, place] = self._pack(code_Nd.to(torch.uint8))
        return {"code": code_NB, "scale": scale_NM}

    def _pack(self, code_Nd: Tensor) -> Tensor:
        per_byte = 8 // self.bits
        width = -(-code_Nd.shape[1] // per_byte)
        padded = torch.zeros(len(code_Nd), per_byte * width, dtype=torch.uint8)
        padded[:, : code_Nd.shape[1]] = code_Nd
        out_NB = padded[:, :width].clone()
        for place in range(1, per_byte):
            out_NB |= padded[:, place * width : (place + 1) * width] << (place * self.bits)
        return out_NB

    @property
    def form(self) -> Format:
        return Format(self.bits, 2, self.top, tuple(span.dims for span in self.layout))

    def codes(self, fields: Fields, m: int) -> Tensor:
        """Codes of module m in the codec's own coordinates, int8 [N, d]."""
        byte_NB, span = fields["code"][:, self._places[m]], self.layout.spans[m]
        width = byte_NB.shape[1]
        out_Nd = byte_NB.new_empty(len(byte_NB), 8 // self.bits * width)
        for place in range(8 // self.bits):
            part = out_Nd[:, place * width : (place + 1) * width]
            torch.bitwise_right_shift(byte_NB, place * self.bits, out=part)
            part &= self.top
        return out_Nd.view(torch.int8)[:, : span.dims]

    def block(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        out_ND = fields["code"].new_empty(len(fields["code"]), self.layout.dims, dtype=dtype)
        for m, span in enumerate(self.layout):
            scale_N1 = fields["scale"][:, m : m + 1].float()
            out_ND[:, span.slice] = self.codes(fields, m).float().mul_(2).sub_(self.top).mul_(scale_N1)
        return out_ND


class Int4Codec(PackedCodec):
    name, bits = "int4", 4


class SignCodec(PackedCodec):
    name, bits = "sign", 1
