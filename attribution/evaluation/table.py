"""The table of methods: every metric with its bootstrap interval, for the console, for programs and for the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import RESAMPLES, interval, paired
from headwater.attribution.evaluation.metrics import METRICS, retrieval, with_gold
from headwater.attribution.evaluation.ranking import Ranking
from headwater.configs.errors import MismatchError
from headwater.train.artifacts import write_json

if TYPE_CHECKING:
    from rich.table import Table

METHODS = (
    "headwater", "corpus", "trackstar", "gradient_cosine", "gradient_dot", "trak",
    "bm25", "tfidf", "ngram", "encoder", "random", "gold",
)  # fmt: skip
"""The order of the rows; others follow in the order in which they are given. `gold` has a tail-patch only."""

LABELS = {
    "headwater": "Headwater",
    "corpus": "Headwater, no task",
    "trackstar": "TrackStar",
    "gradient_cosine": "Gradient cosine",
    "gradient_dot": "Gradient dot",
    "trak": "TRAK",
    "bm25": "BM25",
    "tfidf": "TF-IDF",
    "ngram": "N-gram match",
    "encoder": "Sentence encoder",
    "random": "Random",
    "gold": "Gold passages",
}
COLUMNS = {
    "mrr": "MRR",
    "recall@10": "Recall@10",
    "hit@10": "Hit@10",
    "precision@10": "Precision@10",
    "tail_patch": "Tail-patch",
}
WIDE = 150
"""Columns of a terminal that hold means and intervals side by side."""
OWN_COLUMNS = {"own_mrr": "MRR", "own_hit@10": "Hit@10"}
"""Of the passages that were not planted and state a fact too (own_text.py); no part of the table above."""


def ordered(names: Sequence[str]) -> list[str]:
    """Method names in the order of the table."""
    return sorted(names, key=lambda name: METHODS.index(name) if name in METHODS else len(METHODS))


def build_table(
    rankings: Mapping[str, Sequence[Ranking]],
    tail_patch: Mapping[str, np.ndarray] | None = None,
    log_tail_patch: Mapping[str, np.ndarray] | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    reference: str = "headwater",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The table from the rankings of each method.

    Args:
        rankings: method -> one ranking per query, the same queries in the same order for all methods.
        tail_patch: method -> float [Q'], mean rise of the target's probability per query. It may have methods without a
            ranking, such as `gold`, and fewer queries than the rankings, but the same ones for all methods.
        log_tail_patch: the same of the probability's logarithm, in nats.
        metrics: of retrieval, as `metrics.retrieval` knows them.
        reference: the method that the others are compared with, pair by pair.

    Returns:
        {"methods": {m: {metric: [mean, low, high], ..., "queries": n, "tail_patch_queries": n}},
         "comparisons": [{"metric", "method": reference, "against", "difference": [mean, low, high],
                          "wins", "losses", "ties"}],
         "interval": {"level", "resamples", "seed"}}.

    Raises:
        MismatchError: if two methods answered different queries.
    """
    require_same_queries(rankings)
    values: dict[str, dict[str, np.ndarray]] = {name: retrieval(each, metrics) for name, each in rankings.items()}
    for name, each in (tail_patch or {}).items():
        values.setdefault(name, {})["tail_patch"] = np.asarray(each, dtype=np.float64)
    for name, each in (log_tail_patch or {}).items():
        values.setdefault(name, {})["log_tail_patch"] = np.asarray(each, dtype=np.float64)
    methods: dict[str, Any] = {}
    for name in ordered(list(values)):
        row: dict[str, Any] = {
            metric: interval(each, resamples=resamples, seed=seed) for metric, each in values[name].items()
        }
        if "mrr" in values[name]:
            row["queries"] = len(values[name]["mrr"])
        if "own_mrr" in values[name]:
            row["own_queries"] = len(values[name]["own_mrr"])
        if "tail_patch" in values[name]:
            row["tail_patch_queries"] = len(values[name]["tail_patch"])
            row.setdefault("queries", row["tail_patch_queries"])
        methods[name] = row
    return {
        "methods": methods,
        "comparisons": compare(values, reference, seed=seed, resamples=resamples),
        "interval": {"level": 0.95, "resamples": resamples, "seed": seed},
    }


def compare(
    values: Mapping[str, Mapping[str, np.ndarray]], reference: str, *, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """The reference method less every other one, on every metric that both have."""
    rows = []
    for name in ordered([name for name in values if name != reference]):
        for metric, a_Q in values.get(reference, {}).items():
            b_Q = values[name].get(metric)
            if b_Q is None:
                continue
            if len(a_Q) != len(b_Q):
                raise MismatchError(
                    f"{metric} of {reference} and {name} is of different queries", got=len(b_Q), expected=len(a_Q)
                )
            result = paired(a_Q, b_Q, seed=seed, resamples=resamples)
            counts = {"wins": result.wins, "losses": result.losses, "ties": result.ties}
            rows.append(
                {"metric": metric, "method": reference, "against": name, "difference": result.difference, **counts}
            )
    return rows


def require_same_queries(rankings: Mapping[str, Sequence[Ranking]]) -> None:
    asked = {name: [each.example_id for each in with_gold(rows)] for name, rows in rankings.items()}
    first = next(iter(asked), None)
    for name, ids in asked.items():
        if ids != asked[first]:  # type: ignore[index]
            raise MismatchError(
                f"{name} and {first} were not evaluated on the same queries in the same order",
                got=f"{len(ids)} queries",
                expected=f"{len(asked[first])} queries",  # type: ignore[index]
                fix="run `headwater evaluate` again for all methods",
            )


def write_table(path: str | os.PathLike[str], table: Mapping[str, Any]) -> None:
    """Writes RUN/evaluation/table.json."""
    write_json(path, table)


def format_interval(metric: str, values: Sequence[float] | None) -> str:
    """`.948 [.923, .972]`; a tail-patch with its sign; a dash where there is nothing."""
    if values is None:
        return "–"
    mean, low, high = (format_value(metric, value) for value in values)
    return f"{mean} [{low}, {high}]"


def format_value(metric: str, value: float) -> str:
    """Three decimals without the leading zero, as the field prints them; signed for tail-patch."""
    text = f"{value:+.3f}" if metric == "tail_patch" else f"{value:.3f}"
    return (text.replace("0.", ".", 1) if abs(value) < 1 else text).replace("-", "−")


def console_tables(table: Mapping[str, Any], width: int = 160) -> list[Table]:
    """The table for a terminal and, where the corpus's own text states some of the facts, one about that."""
    own = max((row.get("own_queries", 0) for row in table["methods"].values()), default=0)
    caption = "passages that were not planted and state the fact too (neither counts against the other); "
    caption += interval_over(table, own)
    main = console_table(table, width)
    about = (table, width, LABELS, "The corpus's own text", OWN_COLUMNS, caption, "own_queries")
    return [main, one_table(*about)] if own else [main]


def console_table(table: Mapping[str, Any], width: int = 160, labels: Mapping[str, str] = LABELS) -> Table:
    """The table for a terminal of `width` columns: below 150, each interval stands under its mean, and metrics that
    were asked for in place of those at 10."""
    rows = table["methods"].values()
    measured = dict.fromkeys(metric for row in rows for metric in row)
    further = {each: each.capitalize() for each in measured if "@" in each and each not in {**COLUMNS, **OWN_COLUMNS}}
    named = COLUMNS | further
    if width < WIDE and further:  # there is room for those that were asked for
        named = {each: name for each, name in named.items() if each in further or "@" not in each}
    caption = interval_over(table, max((row["queries"] for row in rows), default=0))
    if "tail_patch" in measured:
        caption += "; tail-patch: mean rise of the target's probability"
    return one_table(table, width, labels, "Methods", named, caption, "queries")


def interval_over(table: Mapping[str, Any], queries: int) -> str:
    level = table.get("interval", {}).get("level", 0.95)
    return f"mean and {level:.0%} bootstrap interval over {queries:,} queries"


def one_table(
    table: Mapping[str, Any],
    width: int,
    labels: Mapping[str, str],
    title: str,
    named: Mapping[str, str],
    caption: str,
    count: str,
) -> Table:
    """Those columns of `named` that some method has.

    Args:
        count: the key of a method's number of queries.
    """
    from rich import box
    from rich.table import Table

    methods = table["methods"]
    columns = [metric for metric in named if any(metric in row for row in methods.values())]
    compact = width < WIDE
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0) if compact else (0, 1), "pad_edge": False}
    view = Table(title=title, caption=caption, title_justify="left", caption_justify="left", **style)
    view.add_column("method", no_wrap=True)
    for metric in columns:
        view.add_column(named[metric], justify="right", no_wrap=True)
    if not compact:
        view.add_column("queries", justify="right", no_wrap=True)
    cell = stacked_interval if compact else format_interval
    for name in (name for name in ordered(list(methods)) if methods[name].keys() & set(columns)):
        row = methods[name]
        cells = [cell(metric, row.get(metric)) for metric in columns]
        view.add_row(labels.get(name, name), *cells, *([] if compact else [f"{row.get(count, 0):,}"]))
    return view


def stacked_interval(metric: str, values: Sequence[float] | None) -> str:
    """The mean, and its interval on the line below."""
    if values is None:
        return "–"
    mean, low, high = (format_value(metric, value) for value in values)
    return f"{mean}\n{low}–{high}".replace("1.000–", "1–").replace("–1.000", "–1")
