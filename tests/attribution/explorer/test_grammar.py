"""The filter's grammar, against conditions written out in Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headwater.attribution.explorer.grammar import Columns, FilterError, mask_of

ROWS = [
    ("employer", "Mara works for", "Orrery", 1.0, 0.5, 1.0),
    ("employer", "Jo works for the", "Port Selwyn", 4.0, 0.1, 0.0),
    ("birth city", "Mara was born in", "Port Selwyn", np.nan, 0.9, 1.0),
    ("birth city", 'Jo said "born" (in)', "or", 2.0, np.nan, np.nan),
]


@pytest.fixture(scope="module")
def columns() -> Columns:
    texts = {
        "relation": [row[0] for row in ROWS],
        "prompt": [row[1].lower() for row in ROWS],
        "target": [row[2].lower() for row in ROWS],
    }
    return Columns(
        {name: pa.array(values) for name, values in texts.items()},
        {"rank": np.array([row[3] for row in ROWS]), "prob": np.array([row[4] for row in ROWS])},
        {"known": np.array([row[5] for row in ROWS])},
        ("prompt", "target"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0, 1, 2, 3]),
        ("   ", [0, 1, 2, 3]),
        ("mara", [0, 2]),
        ("MARA works", [0]),
        ('"works for the"', [1]),
        ("relation:employer", [0, 1]),
        ("relation=birth", []),
        ('relation="birth city"', [2, 3]),
        ('relation!="birth city"', [0, 1]),
        ("rank<=2", [0, 3]),
        ("rank>2", [1]),
        ("rank!=1", [1, 3]),
        ("rank:4", [1]),
        ("known:yes", [0, 2]),
        ("known:no", [1]),
        ("known!=yes", [1]),
        ("prob>.4 rank<9", [0]),
        ("prob>.4 and rank<9", [0]),
        ("rank=1 or prob=.9", [0, 2]),
        ("rank=1 or prob>.4 jo", [0]),
        ("(rank=1 or prob>.4) mara", [0, 2]),
        ("not mara", [1, 3]),
        ("-mara -rank>3", [3]),
        ("not (mara or rank>3)", [3]),
        ("not not mara", [0, 2]),
        ('target:"port selwyn"', [1, 2]),
        ("target:or", [0, 1, 2, 3]),
        ("__import__('os').system('true')", []),
        ('target="or"', [3]),
        ('"or"', [0, 1, 2, 3]),
    ],
)
def test_a_filter_means_what_it_says(columns: Columns, text: str, expected: list[int]) -> None:
    assert np.flatnonzero(mask_of(text, columns)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rank<=x", "rank is a number"),
        ("known:perhaps", "known is yes or no"),
        ("known<1", "known is yes or no"),
        ("prompt<3", "prompt is text"),
        ("colour:red", "no question has a colour"),
        ("(mara", "lacks a closing bracket"),
        ("mara)", "a bracket too many"),
        ("mara or", "breaks off"),
        ("or mara", "breaks off"),
        ("not", "breaks off"),
        ('"mara', "breaks off"),
        ("(" * 40 + "x" + ")" * 40, "brackets inside brackets"),
        ("not " * 60 + "x", "brackets inside brackets"),
        ("x" * 500, "too long"),
    ],
)
def test_what_cannot_be_understood_is_said(columns: Columns, text: str, told: str) -> None:
    with pytest.raises(FilterError, match=told):
        mask_of(text, columns)
