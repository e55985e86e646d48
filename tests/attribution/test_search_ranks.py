"""The scan on 1, 2 and 3 ranks finds the same lists."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headwater.attribution.curvature.sums import FactorSums
from headwater.attribution.index.reader import open_index
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.search.full_ranking import gold_ranks, score_all
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.search.scan import scan

from ..jobs import call
from .scan_shared import scan_shared
from .synthetic_rows import make_rows

LAYOUT = RowLayout([("layers.0.qkv", 6, 7), ("layers.0.fc1", 9, 5), ("layers.1.fc2", 4, 8)])
ROWS, QUERIES = 333, 7


@pytest.mark.slow
def test_any_number_of_ranks_finds_the_same(tmp_path):
    rows_ND = make_rows(LAYOUT, ROWS)
    curvature = FactorSums(LAYOUT)
    for part_ND in rows_ND.split(100):
        curvature.add(part_ND)
    whitening = curvature.whitening(0.1)
    writer = IndexWriter(
        tmp_path / "index",
        layout=LAYOUT,
        passages=ROWS,
        whitening=whitening,
        codecs=["fp32", "int8"],
        meta={},
        shard_rows=47,
    )
    writer.begin()
    for number in writer.pending():
        writer.write(number, rows_ND[slice(*writer.span(number))])
    writer.finish([f"p#{i}" for i in range(ROWS)])
    queries_QD = make_rows(LAYOUT, QUERIES, rows_seed=99)
    golds = [[q, 300 - q] for q in range(QUERIES)]
    torch.save({"queries": queries_QD, "golds": golds, "rows": rows_ND}, tmp_path / "queries.pt")
    source = Source(open_index(tmp_path / "index"), queries_QD)
    one = scan([source], ScanOptions(top_k=10, bottom_k=5))
    two = scan([source], ScanOptions(top_k=10, bottom_k=5, codec="int8", rescore="fp32", candidates=33))
    for world in (2, 3):
        log = tmp_path / f"log-{world}"
        assert call(scan_shared, str(tmp_path), ranks=world, log=log) == 0, log.read_text()
        every = score_all([source])
        np.testing.assert_allclose(np.load(tmp_path / f"{world}-scores.npy").T, every, atol=1e-6)
        table = pq.read_table(tmp_path / f"{world}-scores.parquet")
        assert table["id"].to_pylist() == [f"p#{n}" for n in range(ROWS)]
        np.testing.assert_allclose(np.stack([table[f"q{q}"].to_numpy() for q in range(QUERIES)]), every, atol=1e-6)
        assert len(list(tmp_path.glob(f"{world}-scores*"))) == 2
        for rank in range(world):
            got = np.load(tmp_path / f"{world}-{rank}.npz")
            assert np.array_equal(got["passages"], one.passages)
            assert np.allclose(got["scores"], one.scores, atol=1e-6)
            assert np.array_equal(got["low"], one.bottom_passages)
            assert np.array_equal(got["two"], two.passages)
            assert np.allclose(got["two_scores"], two.scores, atol=1e-6)
            assert np.array_equal(got["ranks"], np.stack(gold_ranks([source], golds)))
            assert not np.isnan(got["every"]).any()
            assert got["scanned"] == ROWS
            assert np.array_equal(got["curvature"], curvature.means("out")[LAYOUT.names[0]].numpy())
