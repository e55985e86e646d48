"""Holds methods against gold passages on any index: one's own model, documents, questions, and others' results.

    headwater evaluate index=INDEX queries=FILE results.theirs=FILE

Four ways to score the index's rows, the baselines that are asked for, and results that other programs wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.baselines.bm25 import BM25
from headwater.attribution.evaluation.baselines.encoder import Encoder
from headwater.attribution.evaluation.baselines.ngram import NGram
from headwater.attribution.evaluation.baselines.random_order import RandomRanking
from headwater.attribution.evaluation.baselines.tfidf import TfIdf
from headwater.attribution.evaluation.baselines.trak import Trak
from headwater.attribution.evaluation.golds import with_gold_columns, with_gold_ids
from headwater.attribution.evaluation.metrics import METRICS
from headwater.attribution.evaluation.outside import outside_rankings
from headwater.attribution.evaluation.ranking import DEPTH, Method, Ranking, numbers_of_lists, write_rankings
from headwater.attribution.evaluation.table import build_table, write_table
from headwater.attribution.search.options import ScanOptions
from headwater.attribution.search.scorer import Scoring
from headwater.attribution.search.topk import NOBODY
from headwater.attribution.settings import WAYS, EvaluateSettings, curvature_used
from headwater.attribution.tracing.attributor import Attributor
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.train.stream.columns import PassageColumns


def evaluate_index(settings: EvaluateSettings) -> dict[str, Any]:
    """Ranks, measures, and writes OUT: one file a method, and table.json, which is returned.

    Raises:
        MissingError, MismatchError: queries, index or results are not there, or do not fit together.
    """
    queries = read_queries(settings.queries)
    out = (
        Path(settings.out)
        if settings.out
        else Path(settings.index).with_name(f"{Path(settings.index).name}-evaluation")
    )
    with Attributor.open(settings.index) as attributor:
        passages = attributor.passages
        if settings.gold_columns:
            queries = with_gold_columns(queries, passages, PassageColumns(passages), settings.gold_columns)
        else:
            queries = with_gold_ids(queries, passages)
        methods = baselines(settings, attributor)  # first: these, and results, may be refused
        rankings: dict[str, list[Ranking]] = {}
        for name, path in settings.results.items():
            rankings[name] = outside_rankings(path, queries, passages)
        for name, (curvature, normalize) in WAYS.items():
            used = curvature_used(curvature, len(queries))
            scoring = Scoring(curvature=used, task_weight=settings.task_weight, normalize=normalize)
            rankings[name] = rankings_of(attributor, queries, scoring)
        for method in methods:
            rankings[method.name] = method.rank(queries, passages)
    for name, each in rankings.items():
        write_rankings(out / f"{name}.jsonl", each)
    table = build_table(rankings, metrics=(*METRICS, *settings.more_metrics), seed=settings.seed)
    write_table(out / "table.json", table)
    return table


def baselines(settings: EvaluateSettings, attributor: Attributor | None = None) -> list[Method]:
    """The methods that read texts alone, or nothing; with an opened index, TRAK by its rows."""
    made: dict[str, Method] = {
        "bm25": BM25(),
        "tfidf": TfIdf(),
        "ngram": NGram(),
        "random": RandomRanking(settings.seed),
    }
    if "encoder" in settings.baselines:
        made["encoder"] = Encoder(settings.encoder)
    if "trak" in settings.baselines and attributor is not None:
        made["trak"] = Trak(attributor)
    return [made[name] for name in settings.baselines]


def rankings_of(attributor: Attributor, queries: list[Query], scoring: Scoring) -> list[Ranking]:
    """The full ranking of every query by one way to score: its best passages, and the places of the gold ones."""
    passages = attributor.passages
    options = ScanOptions(scoring=scoring, top_k=min(DEPTH, len(passages)))
    golds = [gold.tolist() for gold in numbers_of_lists([query.gold for query in queries], passages)]
    found, gold_ranks = attributor.ranked(queries, golds, options)
    listed = np.unique(found.passages[found.passages != NOBODY])
    names = dict(zip(listed.tolist(), passages.ids_of(listed), strict=True))
    return [
        Ranking(
            query.example_id,
            tuple(names[n] for n in found.passages[i].tolist() if n != NOBODY),
            tuple(int(rank) for rank in gold_ranks[i]),
        )
        for i, query in enumerate(queries)
    ]
