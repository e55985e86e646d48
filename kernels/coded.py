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
COLUMNS = 2 * GROUP
"""Columns that are filled at once."""
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


class _Packed:
    """Vectors as the compiled code reads them."""

    def __init__(self, form: Format, planes: int, dot: str | None) -> None:
        if not form.is_exact:
            raise ValueError(f"a module of {max(form.dims)} numbers: at most {LARGEST}")
        self.form, self.planes, self.dot = form, planes, dot or coded_code.best_dot()
        self._kept: list[Tensor] = []  # what the tables point to
        widths = form.widths
        self._table = torch.zeros(len(widths), FIELDS, dtype=torch.int64)
        for m, width in enumerate(widths):
            self._table[m, 0], self._table[m, 1] = sum(widths[:m]), width
        longest = max(-(-width // SPAN) * SPAN * (8 // form.bits) for width in widths)
        self._together = max(TOGETHER, DECODED // longest // TOGETHER * TOGETHER)
        self._scratch = TOGETHER * 2 * GROUP * 4 + self._together * longest

    def _multiplied(self, code_NB: Tensor, scale_NM: Tensor, width: int, along: int, few: int = 0) -> Tensor:
        """What `many` (or, for so many vectors, `few`) adds to zeros, float32 [n, width]."""
        rows, form = len(code_NB), self.form
        out_NK = torch.zeros(rows, width)
        run = coded_code.compiled("few" if few else "many", form.bits, self.planes, self.dot)
        scale_NM = scale_NM.contiguous()
        code_row, scale_row = code_NB.stride(0), 2 * scale_NM.stride(0)

        def some(start: int, stop: int) -> None:
            code, scale = code_NB.data_ptr() + start * code_row, scale_NM.data_ptr() + start * scale_row
            out, shared = out_NK.data_ptr() + 4 * start * width, (code, code_row, scale, scale_row, stop - start)
            table = (self._table.data_ptr(), len(self._table))
            if few:
                run(*shared, *table, few, form.gain, out, 4 * width)
                return
            scratch = torch.empty(self._scratch, dtype=torch.uint8)
            run(*shared, self._together, *table, form.gain, scratch.data_ptr(), out, 4 * width, along)

        share_out(rows, sum(form.dims) * max(1, width // GROUP) // 4, some)
        return out_NK

    def _tiles(self, vectors_Kd: Tensor, width: int, column: int) -> list[list[int]]:
        """Tiles of vectors of a module, whose products are added to the columns from `column` on."""
        some = 2 * GROUP // self.planes
        starts = range(0, len(vectors_Kd), some)
        return [self._tile(vectors_Kd[k : k + some], width, self.planes, self.planes - 1, column + k) for k in starts]

    def _point_to(self, m: int, tiles: list[list[int]]) -> None:
        self._table[m, 2], self._table[m, 3] = len(tiles), self._address(torch.tensor(tiles, dtype=torch.int64))

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


class CodedVectors(_Packed):
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
        super().__init__(form, planes, dot)
        self.queries = len(queries[0])
        self._few = self.queries + max(len(part) for part in directions) <= FEW
        self._columns = -(-self.queries // (2 * GROUP)) * 2 * GROUP
        for m, width in enumerate(form.widths):
            if self._few:
                both_Kd = torch.cat([queries[m], directions[m]])
                self._table[m, 2:6] = torch.tensor([*self._whole(both_Kd, width), len(directions[m])])
                continue
            tiles = self._tiles(queries[m], width, 0)
            for first in range(0, len(directions[m]), 2 * GROUP):
                tiles.append(self._tile(directions[m][first : first + 2 * GROUP], width, 1, 2, 0))
            self._point_to(m, tiles)

    def products(self, code_NB: Tensor, scale_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Products with the queries, float32 [n, Q], and the sums of squares along the directions, float32 [n].

        Args:
            code_NB: int8 or uint8, with adjacent columns.
            scale_NM: bfloat16, contiguous.
        """
        if self._few:
            out_NK = self._multiplied(code_NB, scale_NM, self.queries + 1, 0, self.queries)
            return out_NK[:, : self.queries].contiguous(), out_NK[:, self.queries]
        out_NK = self._multiplied(code_NB, scale_NM, self._columns + GROUP, self._columns)
        return out_NK[:, : self.queries].contiguous(), out_NK[:, self._columns :].sum(dim=1)

    def _whole(self, vectors_Kd: Tensor, width: int) -> list[int]:
        """Addresses of vectors as `few` reads them, of their scales, and of what is taken off their sums."""
        planes_PKL, scale_K, off_PK = self._split(vectors_Kd, width, self.planes)
        return [self._address(each) for each in (planes_PKL.transpose(0, 1), scale_K, off_PK.T)]


class CodedParts(_Packed):
    """Vectors of single modules, whose products with rows of a format are not added up.

    Args:
        form: of the rows.
        vectors: of each module float32 [r, d].
        starts: of each module the column of its first product; a multiple of `COLUMNS`.
        width: columns of all.
        planes: 1 or 2 bytes for a vector's number.
        dot: which instructions; the processor's best if not given.
    """

    def __init__(
        self,
        form: Format,
        vectors: Sequence[Tensor],
        starts: Sequence[int],
        width: int,
        planes: int,
        dot: str | None = None,
    ) -> None:
        super().__init__(form, planes, dot)
        self.width = width
        for m, (bytes_, start) in enumerate(zip(form.widths, starts, strict=True)):
            self._point_to(m, self._tiles(vectors[m], bytes_, start))

    def products(self, code_NB: Tensor, scale_NM: Tensor) -> Tensor:
        """The products, float32 [n, width], zero in columns without a vector; arguments as of `CodedVectors`."""
        return self._multiplied(code_NB, scale_NM, self.width, 0)
