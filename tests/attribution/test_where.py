"""Conditions against what Python itself says of each passage, and searches that they narrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.attribution.search.full_ranking import score_all
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.search.scan import scan
from headwater.attribution.search.where import Condition, Where
from headwater.configs.errors import UserError

from .dense_formula import LAYOUT, N, build
from .synthetic_rows import make_rows

generator = np.random.default_rng(5)
VALUES: dict[str, list[Any]] = {
    "source": [["facts", "wiki", "news", None][n] for n in generator.integers(0, 4, N)],
    "year": [None if n % 11 == 0 else int(n) for n in generator.integers(1950, 2030, N)],
    "weight": generator.normal(size=N).tolist(),
    "draft": [[True, False, None][n] for n in generator.integers(0, 3, N)],
    "empty": [None] * N,
}


class Written:
    """Columns that a test has written, which remember what was asked."""

    def __init__(self) -> None:
        self.names = list(VALUES)
        self.asked: list[tuple[int, int]] = []

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, pa.Array]:
        self.asked.append((start, stop))
        return {name: pa.array(VALUES[name][start:stop]) for name in names}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('source == "wiki"', lambda v: v["source"] == "wiki"),
        ('"wiki" != source', lambda v: v["source"] not in ("wiki", None)),
        ("year >= 1990 and not draft", lambda v: v["year"] is not None and v["year"] >= 1990 and not v["draft"]),
        ("1960 <= year < 1990.5", lambda v: v["year"] is not None and 1960 <= v["year"] < 1990.5),
        ("year in [1990, 1991, 2000]", lambda v: v["year"] in (1990, 1991, 2000)),
        ('source not in ("wiki", "news")', lambda v: v["source"] == "facts"),
        ('"i" in source', lambda v: v["source"] == "wiki"),
        ('"i" not in source', lambda v: v["source"] in ("facts", "news")),
        ("year is None or draft is not None", lambda v: v["year"] is None or v["draft"] is not None),
        ("weight > -0.5 or (draft == True and year < 1960)",
         lambda v: v["weight"] > -0.5 or (v["draft"] is True and v["year"] is not None and v["year"] < 1960)),
        ("draft", lambda v: v["draft"] is True),
        ("not (year > 1990)", lambda v: not (v["year"] is not None and v["year"] > 1990)),
        ("weight < year", lambda v: v["year"] is not None and v["weight"] < v["year"]),
        ("weight in [-1, 3]", lambda v: v["weight"] in (-1, 3)),
        ("empty is None and not empty", lambda v: True),
        ('empty == "x" or "x" in empty or empty in ["x"]', lambda v: False),
    ],
)  # fmt: skip
def test_a_condition_says_what_python_says(text: str, says: Any) -> None:
    condition = Condition(text)
    columns = Written().read(condition.columns, 0, N)
    expected = [bool(says({name: values[n] for name, values in VALUES.items()})) for n in range(N)]
    assert condition.mask(columns, N).tolist() == expected
    assert condition.mask({name: each[:0] for name, each in columns.items()}, 0).tolist() == []


@pytest.mark.parametrize(
    "text",
    [
        "", "source = 'a'", "source ==", "f(source)", "source.x == 1", "source[0] == 'a'", "__import__('os')", "1 == 1",
        "year + 1 == 2", "lambda: 1", "[year]", "year if draft else 1", "year is 3", "year in year", "year in []",
        "'a' == 'b'", "year == None", "3", "-year > 2", "source in 'wiki'", "(x := 3)", "f'{year}' == 'a'", "a\0b",
        "(" * 300 + "year" + ")" * 300 + " > 2", "not " * 80 + "draft",
    ],
)  # fmt: skip
def test_whatever_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="where="):
        Condition(text)


def test_kinds_that_do_not_meet_and_columns_that_are_not_there() -> None:
    columns = Written()
    for text in ("year == 'a'", "source > 3", "'a' in year", "year in ['a']", "source in [3]", "year", "draft < 3"):
        with pytest.raises(UserError, match=r"compares|for a flag"):
            Where(text, columns).passing(0, 50)
    with pytest.raises(UserError, match="did you mean year") as caught:
        Where("yeer > 3", columns)
    assert "source, year, weight" in str(caught.value)
    with pytest.raises(UserError, match="build again"):
        Where("language == 'en'", columns)


def test_a_narrowed_search_is_the_search_of_what_is_left(tmp_path) -> None:
    rows_ND = make_rows(LAYOUT, N)
    index = build(tmp_path, rows_ND, shard_rows=47, codecs=["int8", "fp32"], kind="kronecker")
    source = Source(index, make_rows(LAYOUT, 12, rows_seed=99))
    columns = Written()
    where = Where('source == "wiki" and year < 2000', columns)
    passing = where.passing(0, N)
    assert 10 < passing.sum() < 100
    scores_QN = np.where(passing, score_all([source], ScanOptions(codec="fp32")), np.nan)
    columns.asked.clear()
    for rescore in (None, "fp32"):
        options = ScanOptions(top_k=4, bottom_k=3, codec="int8" if rescore else "fp32", rescore=rescore, where=where)
        found = scan([source], options)
        assert found.scanned == passing.sum()
        for q, scores_N in enumerate(scores_QN):
            order = np.argsort(-np.where(passing, scores_N, -np.inf), kind="stable")[: passing.sum()]
            assert found.passages[q].tolist() == order[:4].tolist()
            assert found.bottom_passages[q].tolist() == order[::-1][:3].tolist()
    assert all(stop - start <= 47 for start, stop in columns.asked)  # by blocks
    seldom = Where(f"weight == {VALUES['weight'][100]}", columns)
    few = scan([source], ScanOptions(top_k=4, where=seldom))
    assert few.passages[3].tolist() == [100, -1, -1, -1]
    assert few.bytes_read < found.bytes_read  # blocks of which nothing passes are not read
    with pytest.raises(UserError, match="no passage"):
        scan([source], ScanOptions(where=Where("weight > 1000", columns)))
