"""The scan on 1, 2 and 3 ranks finds the same lists."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from headwater.attribution.curvature.accumulator import CurvatureAccumulator
from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.index.reader import open_index
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.search.full_ranking import gold_ranks
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.search.scan import scan
from headwater.launch.bench.synthetic import make_rows

LAYOUT = RowLayout([("layers.0.qkv", 6, 7), ("layers.0.fc1", 9, 5), ("layers.1.fc2", 4, 8)])
ROWS, QUERIES = 333, 7

WORKER = """
import sys
import numpy as np, torch, torch.distributed as dist
from headwater.attribution.curvature.whitening import CurvatureAccumulator
from headwater.attribution.index.reader import open_index
from headwater.attribution.search.full_ranking import gold_ranks, score_all
from headwater.attribution.search.scan import ScanOptions, Source, scan
here, rank = sys.argv[1], int(sys.argv[2])
index, saved = open_index(here + "/index"), torch.load(here + "/queries.pt")
torch.set_num_threads(1)
for world in (3, 2):
    if rank >= world:
        break
    dist.init_process_group("gloo", init_method=f"file://{here}/meet-{world}", rank=rank, world_size=world)
    source = Source(index, saved["queries"])
    curvature = CurvatureAccumulator(index.layout)
    for part in saved["rows"].split(100)[rank::world]:
        curvature.add(part)
    curvature.all_reduce()
    one = scan([source], ScanOptions(top_k=10, bottom_k=5))
    two = scan([source], ScanOptions(top_k=10, bottom_k=5, codec="int8", rescore="fp32", candidates=0.1))
    np.savez(
        f"{here}/{world}-{rank}.npz", passages=one.passages, scores=one.scores,
        low=one.bottom_passages, two=two.passages,
        two_scores=two.scores, ranks=np.stack(gold_ranks([source], saved["golds"])), every=score_all([source]),
        scanned=one.scanned, curvature=curvature.autocorrelation()[index.layout.names[0]].numpy(),
    )
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_any_number_of_ranks_finds_the_same(tmp_path):
    rows_ND = make_rows(LAYOUT, ROWS)
    curvature = CurvatureAccumulator(LAYOUT)
    for part_ND in rows_ND.split(100):
        curvature.add(part_ND)
    whitening = Whitening.from_autocorrelation(LAYOUT, curvature.autocorrelation(), 0.1)
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
    (tmp_path / "worker.py").write_text(WORKER)
    ranks = [subprocess.Popen([sys.executable, tmp_path / "worker.py", tmp_path, str(rank)]) for rank in range(3)]
    source = Source(open_index(tmp_path / "index"), queries_QD)
    one = scan([source], ScanOptions(top_k=10, bottom_k=5))
    two = scan([source], ScanOptions(top_k=10, bottom_k=5, codec="int8", rescore="fp32", candidates=0.1))
    assert [process.wait(timeout=200) for process in ranks] == [0, 0, 0]
    for world in (2, 3):
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
            assert np.array_equal(got["curvature"], curvature.autocorrelation()[LAYOUT.names[0]].numpy())
