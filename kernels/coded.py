"""Inner products of vectors with rows that are stored in few bits, on a CPU: decoded in the caches, never in memory.

A vector is split into one or two planes of bytes, v = scale (128 high + low): sums are whole numbers, exact, and the
same on every processor; two planes leave an error of 2^-15 of the vector's largest number in a module. A few vectors
are multiplied as the codes stream by, at the speed of memory; for many the codes of some rows are decoded into the
second cache first.

Legend: N rows, K vectors, Q of them queries, M modules, d numbers of a module, B bytes of a row's codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import coded_code
from .coded_code import FIELDS, GROUP, SPAN, TOGETHER
from .cpu_products import share_out

FEW = 8
"""Vectors up to which codes are multiplied as they stream by."""
LARGEST = 1 << 17
"""Numbers of a module whose sums are sure to fit into 32 bits."""
DECODED = 1 << 19
"""Bytes of decoded rows: half of a second cache."""


@dataclass(frozen=True, slots=True)
class Format:
    """How rows are stored.

    Attributes:
        bits: of a number: 1, 2 or 4 without a sign, packed as coded_code.py says, or 8 with a sign.
        gain, offset: a stored number is (gain * code - offset) * scale, with a scale for each module.
        dims: numbers of each module.
    """

    bits: int
    gain: int
    offset: int
    dims: tuple[int, ...]

    @property
    def is_exact(self) -> bool:
        """Whether the sums of every module fit into 32 bits."""
        return max(self.dims) <= LARGEST

    @property
    def widths(self) -> list[int]:
        """Bytes of each module in a row."""
        return [-(-d * self.bits // 8) for d in self.dims]


class CodedVectors:
    """Vectors to be multiplied with rows of a format.

    Args:
        form: of the rows.
        queries: of each module float32 [Q, d]: products are added up over the modules.
        directions: of each module float32 [r, d]: squared products are added up over all.
        planes: 1 or 2 bytes for a query's number; among many a direction's has one.
        dot: which instructions; the processor's best if not given.
    """

    def __init__(
        self,
        form: Format,
        queries: Sequence[Tensor],
        directions: Sequence[Tensor],
        planes: int,
        dot: str | None = None,
    ) -> None:
        if not form.is_exact:
            raise ValueError(f"a module of {max(form.dims)} numbers: at most {LARGEST}")
        self.form, self.planes, self.dot = form, planes, dot or coded_code.best_dot()
        self.queries = len(queries[0])
        self._kept: list[Tensor] = []  # what the tables point to
        self._few = self.queries + max(len(part) for part in directions) <= FEW
        self._columns = -(-self.queries // (2 * GROUP)) * 2 * GROUP
        widths = form.widths
        starts = [sum(widths[:m]) for m in range(len(widths))]
        table = torch.zeros(len(widths), FIELDS, dtype=torch.int64)
        for m, (start, width) in enumerate(zip(starts, widths, strict=True)):
            table[m, 0], table[m, 1] = start, width
            if self._few:
                both_Kd = torch.cat([queries[m], directions[m]])
                table[m, 2:6] = torch.tensor([*self._whole(both_Kd, width), len(directions[m])])
            else:
                tiles = self._tiles(queries[m], directions[m], width)
                table[m, 2], table[m, 3] = len(tiles), self._address(torch.tensor(tiles, dtype=torch.int64))
        self._table = table
        longest = max(-(-width // SPAN) * SPAN * (8 // form.bits) for width in widths)
        self._together = max(TOGETHER, DECODED // longest // TOGETHER * TOGETHER)
        self._scratch = TOGETHER * 2 * GROUP * 4 + self._together * longest

    def products(self, code_NB: Tensor, scale_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Products with the queries, float32 [n, Q], and the sums of squares along the directions, float32 [n].

        Args:
            code_NB: int8 or uint8, with adjacent columns.
            scale_NM: bfloat16, contiguous.
        """
        rows, form = len(code_NB), self.form
        width = self.queries + 1 if self._few else self._columns + GROUP
        out_NK = torch.zeros(rows, width)
        run = coded_code.compiled("few" if self._few else "many", form.bits, self.planes, self.dot)
        scale_NM = scale_NM.contiguous()
        code_row, scale_row = code_NB.stride(0), 2 * scale_NM.stride(0)

        def some(start: int, stop: int) -> None:
            code, scale = code_NB.data_ptr() + start * code_row, scale_NM.data_ptr() + start * scale_row
            out, shared = out_NK.data_ptr() + 4 * start * width, (code, code_row, scale, scale_row, stop - start)
            table = (self._table.data_ptr(), len(self._table))
            if self._few:
                run(*shared, *table, self.queries, form.gain, out, 4 * width)
                return
            scratch = torch.empty(self._scratch, dtype=torch.uint8)
            run(*shared, self._together, *table, form.gain, scratch.data_ptr(), out, 4 * width, self._columns)

        share_out(rows, sum(form.dims) * max(1, width // GROUP) // 4, some)
        if self._few:
            return out_NK[:, : self.queries].contiguous(), out_NK[:, self.queries]
        return out_NK[:, : self.queries].contiguous(), out_NK[:, self._columns :].sum(dim=1)

    def _whole(self, vectors_Kd: Tensor, width: int) -> list[int]:
        """Addresses of vectors as `few` reads them, of their scales, and of what is taken off their sums."""
        planes_PKL, scale_K, off_PK = self._split(vectors_Kd, width, self.planes)
        return [self._address(each) for each in (planes_PKL.transpose(0, 1), scale_K, off_PK.T)]

    def _tiles(self, queries_Qd: Tensor, directions_rd: Tensor, width: int) -> list[list[int]]:
        """The tiles of a module as `many` reads them."""
        tiles = []
        if self.planes == 1:
            for first in range(0, len(queries_Qd), 2 * GROUP):
                tiles.append(self._tile(queries_Qd[first : first + 2 * GROUP], width, 1, 0, first))
        else:
            for first in range(0, len(queries_Qd), GROUP):
                tiles.append(self._tile(queries_Qd[first : first + GROUP], width, 2, 1, first))
        for first in range(0, len(directions_rd), 2 * GROUP):
            tiles.append(self._tile(directions_rd[first : first + 2 * GROUP], width, 1, 2, 0))
        return tiles

    def _tile(self, vectors_Kd: Tensor, width: int, planes: int, kind: int, column: int) -> list[int]:
        """Two groups of vectors, or the two planes of one, with zeros behind the last."""
        full_Kd = torch.zeros(2 * GROUP // planes, vectors_Kd.shape[1])
        full_Kd[: len(vectors_Kd)] = vectors_Kd
        planes_PKL, scale_K, off_PK = self._split(full_Kd, width, planes)
        steps = planes_PKL.reshape(2, GROUP, -1, 4).permute(2, 0, 1, 3)
        addresses = [self._address(each) for each in (steps, scale_K.repeat(planes), off_PK)]
        return [*addresses, kind, column] + [0] * (FIELDS - 5)

    def _split(self, vectors_Kd: Tensor, width: int, planes: int) -> tuple[Tensor, Tensor, Tensor]:
        """int8 planes [P, K, L] in the order of the codes, float32 scales [K], int32 offsets [P, K]."""
        form = self.form
        steps = 127.0 if planes == 1 else 127.0 * 128
        scale_K1 = (vectors_Kd.abs().amax(dim=1, keepdim=True) / steps).clamp_min(1e-38)
        whole_Kd = (vectors_Kd / scale_K1).round_()
        high_Kd = (whole_Kd / 128).round() if planes == 2 else whole_Kd
        parts_PKd = torch.stack([high_Kd, whole_Kd - 128 * high_Kd][:planes])
        per_byte = 8 // form.bits
        spread = torch.zeros(planes, len(vectors_Kd), per_byte * width)
        spread[..., : vectors_Kd.shape[1]] = parts_PKd
        length = -(-width // SPAN) * SPAN
        planes_PKL = torch.zeros(planes, len(vectors_Kd), per_byte, length, dtype=torch.int8)
        planes_PKL[..., :width] = spread.unflatten(2, (per_byte, width)).to(torch.int8)
        offset = form.offset + (128 * form.gain if form.bits == 8 else 0)  # read with 128 added
        return planes_PKL.flatten(2), scale_K1.flatten(), (offset * parts_PKd.sum(dim=2)).to(torch.int32)

    def _address(self, values: Tensor) -> int:
        values = values.contiguous()
        self._kept.append(values)
        return values.data_ptr()
