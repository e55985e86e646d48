"""Every score on disk: the scores of the scan, whole or not there at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headwater.attribution.index.reader import open_index
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.search import score_files
from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.full_ranking import score_all
from headwater.attribution.search.options import Exclusion, ScanOptions, Source
from headwater.attribution.search.scan import scan, search
from headwater.attribution.search.score_files import score_file
from headwater.configs.errors import UserError

from .dense_formula import LAYOUT, N, build
from .synthetic_rows import make_rows

Q = 7
NAMES = [f"query {q}" for q in range(Q)]


def ids(start: int, stop: int) -> list[str]:
    return [f"p{n}#0" for n in range(start, stop)]


def read(path: Path) -> np.ndarray:
    """Scores [Q, N] of either kind of file; the ids are in their place."""
    if path.suffix == ".npy":
        scores_NQ = np.load(path, mmap_mode="r")
        assert scores_NQ.dtype == np.float32
        return np.array(scores_NQ.T)
    table = pq.read_table(path)
    assert table.column_names == ["id", *NAMES]
    assert table["id"].to_pylist() == ids(0, table.num_rows)
    return np.stack([table[name].to_numpy() for name in NAMES])


@pytest.mark.parametrize("name", ["scores.npy", "scores.parquet"])
def test_every_score_is_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks that end where no shard does, some passages excluded; and the search finds what it finds without."""
    monkeypatch.setattr(score_files, "GAP_ROWS", 29)
    monkeypatch.setattr("headwater.attribution.search.blocks.BLOCK_BYTES", 4 * LAYOUT.dims * 17)
    index = build(tmp_path / "index", make_rows(LAYOUT, N), shard_rows=47)
    source = Source(index, make_rows(LAYOUT, Q, rows_seed=99))
    exclude = Exclusion(np.arange(100, 180), np.array([[3, 5]]))
    work = Scan([source], ScanOptions(top_k=5, bottom_k=2))
    with score_file(tmp_path / name, work, NAMES, ids) as sink:
        found = search(work, exclude, [sink])
        assert not (tmp_path / name).exists()
    expected = score_all([source])
    expected[:, 100:180] = expected[3, 5] = np.nan
    np.testing.assert_array_equal(read(tmp_path / name), expected)
    alone = scan([source], work.options, exclude=exclude)
    assert np.array_equal(found.passages, alone.passages)
    assert np.array_equal(found.bottom_passages, alone.bottom_passages)


@pytest.mark.parametrize("name", ["scores.npy", "scores.parquet"])
def test_what_an_unfinished_index_lacks_has_no_score(tmp_path: Path, name: str) -> None:
    rows_ND = make_rows(LAYOUT, N)
    whole = build(tmp_path / "whole", rows_ND, shard_rows=47)
    about = {"codecs": ["fp32"], "meta": {}, "shard_rows": 47}
    writer = IndexWriter(tmp_path / "half", layout=LAYOUT, passages=N, whitening=whole.whitening, **about)
    writer.begin()
    for number in (1, 4):
        writer.write(number, rows_ND[slice(*writer.span(number))])
    with pytest.warns(UserWarning, match="of 333 passages"):
        half = open_index(tmp_path / "half")
    source = Source(half, make_rows(LAYOUT, Q, rows_seed=99))
    work = Scan([source], ScanOptions(top_k=5, allow_incomplete=True))
    with score_file(tmp_path / name, work, NAMES, ids) as sink:
        search(work, sinks=[sink])
    got = read(tmp_path / name)
    assert np.isfinite(got).sum() == 2 * 47 * Q
    np.testing.assert_array_equal(got, score_all([source], work.options))


@pytest.mark.parametrize("name", ["scores.npy", "scores.parquet"])
def test_a_file_that_was_there_stays_if_the_scan_fails(tmp_path: Path, name: str) -> None:
    index = build(tmp_path / "index", make_rows(LAYOUT, N), shard_rows=47)
    work = Scan([Source(index, make_rows(LAYOUT, Q, rows_seed=99))], ScanOptions())
    (tmp_path / name).write_text("mine")

    def fails(start: int, stop: int, scores_NQ: torch.Tensor) -> None:
        raise KeyError

    with pytest.raises(KeyError), score_file(tmp_path / name, work, NAMES, ids) as sink:
        search(work, sinks=[sink, fails])
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", name]


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    index = build(tmp_path / "index", make_rows(LAYOUT, N))
    work = Scan([Source(index, make_rows(LAYOUT, 2, rows_seed=99))], ScanOptions())
    for names in (["a", "a"], ["a", "id"]):
        with pytest.raises(UserError, match="two columns"), score_file(tmp_path / "s.parquet", work, names, ids):
            pass
