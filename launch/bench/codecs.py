"""What each codec costs and keeps: bytes per passage, overlap with the exact top 10, MRR; in one stage and in two.

Works on an index that holds fp32 rows and on query rows made for it; the other codecs are made from the fp32 rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from headwater.attribution.index.store import Index, open_index
from headwater.attribution.index.writer import recode
from headwater.attribution.ranks import gold_ranks
from headwater.attribution.scoring import Scoring
from headwater.attribution.search import ScanOptions, Source, scan

CANDIDATES = (0.01, 0.02, 0.05, 0.1)


def overlap(found_Qk: np.ndarray, exact_Qk: np.ndarray) -> float:
    """Mean fraction of the exact list that was found."""
    hits = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(found_Qk, exact_Qk, strict=True)]
    return float(np.mean(hits))


def reciprocal_rank(source: Source, golds: Sequence[Sequence[int]], options: ScanOptions) -> float:
    """Mean over queries of 1 / (1 + the best place of a gold passage)."""
    return float(np.mean([1 / (1 + ranks.min()) for ranks in gold_ranks([source], golds, options) if len(ranks)]))


def codec_table(
    index: Index,
    queries_QD: Tensor,
    golds: Sequence[Sequence[int]] | None = None,
    *,
    scoring: Scoring | None = None,
    codecs: Sequence[str] = ("bf16", "int8", "int4", "sign"),
    folder: str | None = None,
) -> list[dict[str, Any]]:
    """A row per codec.

    Args:
        index: with fp32 rows.
        queries_QD: raw query rows, float [Q, D].
        golds: gold passages of each query, for MRR.
        scoring: how scores are made.
        codecs: beside fp32.
        folder: where the recoded index is made (and removed again).

    Returns:
        Dicts with codec, bytes_per_row, fp32_over (how many times smaller than fp32), overlap, mrr, and for compact
        codecs two_stage: {fraction of candidates: overlap after rescoring in int8}.
    """
    scoring = scoring or Scoring()
    exact_options = ScanOptions(scoring=scoring, top_k=10, codec="fp32")
    exact = scan([Source(index, queries_QD)], exact_options).passages
    full = index.codec("fp32").bytes_per_row
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        recode(index, Path(made), codecs)
        coded = open_index(made)
        for name in ("fp32", *codecs):
            held = index if name == "fp32" else coded
            source, options = Source(held, queries_QD), ScanOptions(scoring=scoring, top_k=10, codec=name)
            size = held.codec(name).bytes_per_row + 8
            row: dict[str, Any] = {"codec": name, "bytes_per_row": size, "fp32_over": full / size}
            row["overlap"] = overlap(scan([source], options).passages, exact)
            if golds is not None:
                row["mrr"] = reciprocal_rank(source, golds, options)
            if name in ("int4", "sign") and "int8" in codecs:
                row["two_stage"] = {
                    fraction: overlap(scan([source], two_stage(scoring, name, fraction)).passages, exact)
                    for fraction in CANDIDATES
                }
            table.append(row)
            print(line(row), flush=True)
    return table


def two_stage(scoring: Scoring, codec: str, fraction: float) -> ScanOptions:
    return ScanOptions(scoring=scoring, top_k=10, codec=codec, rescore="int8", candidates=fraction)


def line(row: dict[str, Any]) -> str:
    """One line of the printed table."""
    text = (
        f"{row['codec']:5s} {row['bytes_per_row']:7d} B/row  1/{row['fp32_over']:4.1f}  overlap@10 {row['overlap']:.3f}"
    )
    if "mrr" in row:
        text += f"  MRR {row['mrr']:.3f}"
    for fraction, value in row.get("two_stage", {}).items():
        text += f"  {fraction:.0%} {value:.3f}"
    return text
