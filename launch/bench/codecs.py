"""What each codec costs and keeps: bytes per passage, overlap with the exact top 10, MRR; in one stage and in two.

    headwater bench codecs runs/demo                     # the run's index `headwater`, its probes as queries
    headwater bench codecs DIR --queries FILE.jsonl --json table.json

All forms are made from float32 rows. Where the index holds none, an index of them is made beside it, from the same
model, passages and settings, and kept (DIR-fp32).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.configs.errors import MissingError, UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from headwater.attribution.index.reader import Index
    from headwater.attribution.search.options import ScanOptions, Source
    from headwater.attribution.search.scorer import Scoring
    from headwater.attribution.tracing.opened import Opened
    from headwater.train.parallel import World

CANDIDATES = (0.01, 0.02, 0.05, 0.1)
"""Shares of the passages that are scored again in the second stage."""

COMPACT = ("int4", "sign")
"""What is scanned in two stages, and scored again in int8."""


def main(
    path: str,
    codecs: Sequence[str] = ("bf16", "int8", "int4", "sign"),
    queries: str = "",
    task_weight: float = 0.75,
) -> list[dict[str, Any]]:
    """What each codec costs and keeps: bytes per passage, overlap with the exact top 10, and MRR where gold is known;
    in one stage, and in two over the share of passages that are scored again.

    path: an index directory, or a run with an index `headwater`. --queries: JSONL; by default the run's probes.
    --task-weight: lambda, the weight of the queries' curvature.
    """
    from headwater.attribution.search.scorer import Scoring
    from headwater.attribution.tracing.opened import open_for_queries
    from headwater.attribution.tracing.queries import read_queries
    from headwater.train import parallel
    from headwater.train.artifacts import RunDir
    from headwater.train.numerics import keep_freed_memory, use_onednn

    directory = Path(path) if (Path(path) / "index.json").exists() else RunDir.at(path).index("headwater")
    if not (directory / "index.json").exists():
        raise MissingError(f"{path} is neither an index nor a run with one", fix="run `headwater index` first")
    world = parallel.start()
    try:
        keep_freed_memory()
        use_onednn()
        opened = open_for_queries(directory, world)
        asked = read_queries(queries or default_queries(opened))
        exact = full_index(opened, world)
        known = [[opened.passages.number_of(name) for name in query.gold] for query in asked]
        golds = known if all(known) else None
        table = codec_table(exact, opened.rows(asked), golds, scoring=Scoring(task_weight=task_weight), codecs=codecs)
    finally:
        parallel.stop()
    return table


def default_queries(opened: Opened) -> Path:
    if opened.run is None:
        path = opened.collector.model.places["path"]
        raise UserError("the index's model has no probes", got=path, fix="give --queries FILE.jsonl")
    return opened.run.facts / "probes.jsonl"


def full_index(opened: Opened, world: World) -> Index:
    """The index itself if it holds float32 rows, else one of them beside it, made now or before."""
    from headwater.attribution.index.build import Builder
    from headwater.attribution.index.reader import open_index
    from headwater.attribution.models.opening import model_settings_of
    from headwater.attribution.settings import CurvatureSettings, IndexSettings, ProjectionSettings

    index, meta = opened.index, opened.index.manifest
    if "fp32" in index.codecs:
        return index
    if "captured" in meta:
        raise UserError(
            f"{index.path} holds captured rows, which cannot be made again",
            fix="capture with callbacks.capture.codecs=[fp32]",
        )
    if "sampled" in meta:
        curvature = CurvatureSettings(**meta["sampled"])
    else:  # made when there was one kind
        kind, rows = "none" if meta["curvature"]["kind"] == "none" else "full", meta["curvature"]["rows"]
        curvature = CurvatureSettings(kind=kind, damping=meta["curvature"]["damping"] or None, sample=rows)
    settings = IndexSettings(
        model=model_settings_of(meta["model"], opened.collector.model.places),
        loss=meta["loss"],
        correction=meta["correction"],
        projection=ProjectionSettings(**meta["projection"]),
        curvature=curvature,
        codecs=["fp32"],
    )
    out = index.path.with_name(f"{index.path.name}-fp32")
    print(f"float32 rows: {out}", flush=True)
    Builder(settings, opened.collector.model, out, world).run(opened.passages)
    return open_index(out)


def overlap(found_Qk: np.ndarray, exact_Qk: np.ndarray) -> float:
    """Mean fraction of the exact list that was found."""
    import numpy as np

    hits = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(found_Qk, exact_Qk, strict=True)]
    return float(np.mean(hits))


def reciprocal_rank(source: Source, golds: Sequence[Sequence[int]], options: ScanOptions) -> float:
    """Mean over queries of 1 / (1 + the best place of a gold passage)."""
    import numpy as np

    from headwater.attribution.search.full_ranking import gold_ranks

    return float(np.mean([1 / (1 + ranks.min()) for ranks in gold_ranks([source], golds, options)]))


def reciprocal_rank_found(found_Qk: np.ndarray, golds: Sequence[Sequence[int]]) -> float:
    """The same over what two stages found: a gold passage that is no candidate counts for nothing."""
    import numpy as np

    places = [np.flatnonzero(np.isin(row, gold)) for row, gold in zip(found_Qk, golds, strict=True)]
    return float(np.mean([1 / (1 + each[0]) if len(each) else 0.0 for each in places]))


def codec_table(
    index: Index,
    queries_QD: Tensor,
    golds: Sequence[Sequence[int]] | None = None,
    *,
    scoring: Scoring | None = None,
    codecs: Sequence[str] = ("bf16", "int8", "int4", "sign"),
    folder: str | None = None,
) -> list[dict[str, Any]]:
    """A row per codec; prints each as it is measured.

    Args:
        index: with fp32 rows.
        queries_QD: raw query rows, float [Q, D].
        golds: gold passages of each query, for MRR.
        scoring: how scores are made.
        codecs: beside fp32.
        folder: where the recoded index is made (and removed again).

    Returns:
        Dicts with codec, bytes_per_row, fp32_over (how many times smaller than fp32), overlap, mrr, and for compact
        codecs two_stage: [{candidates (a share), overlap, mrr}] after scoring again in int8.
    """
    from headwater.attribution.index.reader import open_index
    from headwater.attribution.index.recode import recode
    from headwater.attribution.search.options import ScanOptions, Source
    from headwater.attribution.search.scan import scan
    from headwater.attribution.search.scorer import Scoring

    scoring = scoring or Scoring()
    exact = scan([Source(index, queries_QD)], ScanOptions(scoring=scoring, top_k=10, codec="fp32")).passages
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
            if name in COMPACT and "int8" in codecs:
                row["two_stage"] = [two_stage(source, scoring, name, share, exact, golds) for share in CANDIDATES]
            table.append(row)
            print(line(row), flush=True)
    return table


def two_stage(
    source: Source,
    scoring: Scoring,
    codec: str,
    share: float,
    exact_Qk: np.ndarray,
    golds: Sequence[Sequence[int]] | None,
) -> dict[str, float]:
    """What is left when a share of the passages, the best by a compact codec, is scored again in int8."""
    from headwater.attribution.search.options import ScanOptions
    from headwater.attribution.search.scan import scan

    candidates = max(int(share * source.index.passages), 1)
    options = ScanOptions(
        scoring=scoring, top_k=max(10, candidates), codec=codec, rescore="int8", candidates=candidates
    )
    found = scan([source], options).passages
    row = {"candidates": share, "overlap": overlap(found[:, :10], exact_Qk)}
    return row if golds is None else {**row, "mrr": reciprocal_rank_found(found, golds)}


def line(row: dict[str, Any]) -> str:
    """The printed lines of a codec."""
    size = f"{row['bytes_per_row']:7d} B/row  1/{row['fp32_over']:4.1f}"
    text = f"{row['codec']:5s} {size}  overlap@10 {row['overlap']:.3f}"
    if "mrr" in row:
        text += f"  MRR {row['mrr']:.3f}"
    for each in row.get("two_stage", []):
        text += f"\n      {each['candidates']:4.0%} of the rows again in int8: overlap@10 {each['overlap']:.3f}"
        text += f"  MRR {each['mrr']:.3f}" if "mrr" in each else ""
    return text
