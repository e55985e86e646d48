"""What each rank does in test_search_ranks: its part of a scan, of the gold passages' ranks and of the curvature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from headwater.attribution.curvature.sums import FactorSums
from headwater.attribution.index.reader import open_index
from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.full_ranking import gold_ranks, score_all
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.search.scan import scan, search
from headwater.attribution.search.score_files import score_file


def ids(start: int, stop: int) -> list[str]:
    return [f"p#{n}" for n in range(start, stop)]


def scan_shared(directory: str) -> None:
    """Reads `index` and queries.pt of the directory; writes what this rank found to WORLD-RANK.npz."""
    here = Path(directory)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    index, saved = open_index(here / "index"), torch.load(here / "queries.pt")
    source = Source(index, saved["queries"])
    curvature = FactorSums(index.layout)
    for part in saved["rows"].split(100)[rank::world]:
        curvature.add(part)
    curvature.all_reduce()
    one = scan([source], ScanOptions(top_k=10, bottom_k=5))
    two = scan([source], ScanOptions(top_k=10, bottom_k=5, codec="int8", rescore="fp32", candidates=33))
    work = Scan([source], ScanOptions(top_k=10))
    for name in ("scores.npy", "scores.parquet"):
        with score_file(here / f"{world}-{name}", work, [f"q{q}" for q in range(work.queries)], ids) as sink:
            search(work, sinks=[sink])
    np.savez(
        here / f"{world}-{rank}.npz",
        passages=one.passages,
        scores=one.scores,
        low=one.bottom_passages,
        two=two.passages,
        two_scores=two.scores,
        ranks=np.stack(gold_ranks([source], saved["golds"])),
        every=score_all([source]),
        scanned=one.scanned,
        curvature=curvature.means("out")[index.layout.names[0]].numpy(),
    )
