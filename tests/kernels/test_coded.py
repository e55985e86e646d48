"""Products with rows of few bits against float64, on odd sizes, with either kind of instruction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headwater.kernels import coded_code
from headwater.kernels.coded import COLUMNS, FEW, LARGEST, CodedParts, CodedVectors, Format

DIMS = (35, 64 * 64, 130, 1, 9 * 13)
DOTS = ["plain", pytest.param("vnni", marks=pytest.mark.skipif(coded_code.best_dot() != "vnni", reason="no VNNI"))]
FORMS = {
    "sign": Format(1, 2, 1, DIMS),
    "two": Format(2, 2, 3, DIMS),
    "int4": Format(4, 2, 15, DIMS),
    "int8": Format(8, 1, 0, DIMS),
}


def stored(form: Format, rows: int, draw: torch.Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Bytes and scales of random rows, and the numbers that they stand for, float64, by module."""
    codes, numbers = [], []
    for d, width in zip(form.dims, form.widths, strict=True):
        if form.bits == 8:
            code_Nd = torch.randint(-127, 128, (rows, d), generator=draw)
            codes.append(code_Nd.to(torch.int8))
        else:
            code_Nd = torch.randint(0, 1 << form.bits, (rows, d), generator=draw)
            bytes_NB = torch.zeros(rows, width, dtype=torch.uint8)
            for place in range(d):
                bytes_NB[:, place % width] |= (code_Nd[:, place] << (form.bits * (place // width))).to(torch.uint8)
            codes.append(bytes_NB)
        numbers.append((form.gain * code_Nd - form.offset).double())
    scale_NM = torch.rand(rows, len(form.dims), generator=draw).to(torch.bfloat16)
    numbers = [part * scale_NM[:, m : m + 1].double() for m, part in enumerate(numbers)]
    return torch.cat(codes, dim=1), scale_NM, numbers


def rounded(vectors_Kd: Tensor, planes: int) -> Tensor:
    """Vectors as so many bytes can say them, float64."""
    steps = 127 if planes == 1 else 127 * 128
    scale_K1 = vectors_Kd.abs().amax(dim=1, keepdim=True) / steps
    return (vectors_Kd / scale_K1).round().double() * scale_K1.double()


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("planes", "queries", "directions"),
    [(1, 1, 0), (2, 7, 0), (1, 41, 0), (1, 1, 3), (2, 1, 2), (1, 9, 3), (2, 33, 35)],
)
def test_products_and_squares(name: str, planes: int, queries: int, directions: int, dot: str) -> None:
    """Whole numbers are exact: what is left is float32's rounding of a sum over modules."""
    draw, form = torch.Generator().manual_seed(3), FORMS[name]
    code_NB, scale_NM, numbers = stored(form, 27, draw)
    asked = [torch.randn(queries, d, generator=draw) for d in DIMS]
    along = [torch.randn(directions // (m + 1), d, generator=draw) for m, d in enumerate(DIMS)]
    got_NQ, got_N = CodedVectors(form, asked, along, planes, dot).products(code_NB, scale_NM)
    expected_NQ = sum(part @ rounded(each, planes).T for part, each in zip(numbers, asked, strict=True))
    assert isinstance(expected_NQ, Tensor)
    assert (got_NQ - expected_NQ).abs().max() < 1e-6 * expected_NQ.abs().max()
    expected_N = torch.zeros(27, dtype=torch.float64)
    for part, each in zip(numbers, along, strict=True):
        expected_N += (
            (part @ rounded(each, planes if queries + directions <= FEW else 1).T).square().sum(dim=1)
            if len(each)
            else 0
        )
    assert (got_N - expected_N).abs().max() <= 1e-6 * expected_N.abs().max()
    unrounded = sum(part @ each.double().T for part, each in zip(numbers, asked, strict=True))
    assert (got_NQ - unrounded).abs().max() > 1e-6 * expected_NQ.abs().max()


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("planes", [1, 2])
def test_products_of_single_modules(name: str, planes: int, dot: str) -> None:
    """Each module's in its own columns, and nothing in those that no vector has."""
    draw, form = torch.Generator().manual_seed(4), FORMS[name]
    code_NB, scale_NM, numbers = stored(form, 27, draw)
    counts, starts = (33, 5, 0, 1, 32), (0, 2 * COLUMNS, 3 * COLUMNS, 3 * COLUMNS, 4 * COLUMNS)
    vectors = [torch.randn(count, d, generator=draw) for count, d in zip(counts, DIMS, strict=True)]
    width = 5 * COLUMNS + 3
    got_NW = CodedParts(form, vectors, starts, width, planes, dot).products(code_NB, scale_NM)
    expected_NW = torch.zeros(27, width, dtype=torch.float64)
    for part, each, start in zip(numbers, vectors, starts, strict=True):
        expected_NW[:, start : start + len(each)] = part @ rounded(each, planes).T
    assert (got_NW - expected_NW).abs().max() < 1e-6 * expected_NW.abs().max()
    assert not got_NW[:, expected_NW.eq(0).all(dim=0)].any()


def test_rows_between_others_and_many_of_them() -> None:
    """Rows that lie in a wider table, and more than are decoded at a time: nothing beside them is read."""
    draw, form = torch.Generator().manual_seed(4), FORMS["int4"]
    code_NB, scale_NM, numbers = stored(form, 301, draw)
    wide = torch.full((301, code_NB.shape[1] + 5), 255, dtype=torch.uint8)
    wide[:, : code_NB.shape[1]] = code_NB
    for queries in (1, 20):
        asked = [torch.randn(queries, d, generator=draw) for d in DIMS]
        vectors = CodedVectors(form, asked, [torch.empty(0, d) for d in DIMS], 1)
        got_NQ, _ = vectors.products(wide[:, : code_NB.shape[1]], scale_NM)
        expected_NQ = sum(part @ rounded(each, 1).T for part, each in zip(numbers, asked, strict=True))
        assert isinstance(expected_NQ, Tensor)
        assert (got_NQ - expected_NQ).abs().max() < 1e-6 * expected_NQ.abs().max()


@pytest.mark.parametrize("dot", DOTS)
def test_the_largest_sums_fit(dot: str) -> None:
    """Every product as large as it can be, in the widest module."""
    form = Format(8, 1, 0, (LARGEST,))
    code_NB = torch.full((2, LARGEST), -127, dtype=torch.int8)
    for queries in (1, 40):
        asked = [torch.full((queries, LARGEST), 127.0)]
        vectors = CodedVectors(form, asked, [torch.empty(0, LARGEST)], 2, dot)
        got_NQ, _ = vectors.products(code_NB, torch.ones(2, 1, dtype=torch.bfloat16))
        assert got_NQ.shape == (2, queries)
        assert (got_NQ / (-127.0 * 127 * LARGEST) - 1).abs().max() < 1e-6
    with pytest.raises(ValueError, match="at most"):
        CodedVectors(Format(8, 1, 0, (LARGEST + 1,)), [torch.ones(1, LARGEST + 1)], [torch.ones(0, LARGEST + 1)], 1)
