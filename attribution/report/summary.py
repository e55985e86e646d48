"""RUN/report/summary.json: the figures of the page, for programs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from headwater.attribution.report.inputs import RunData

LOSS_STEPS = 20
"""The final loss is the mean over this many last steps; one step's loss is noise."""

METRICS = ("mrr", "recall@10", "hit@10", "precision@10", "own_mrr", "own_hit@10", "tail_patch")


def summarise(data: RunData) -> dict[str, Any]:
    """The run's figures, null where it does not hold them. Only times and speeds differ between equal runs."""
    wall = data.timings
    return {
        "corpus": {
            "passages": data.passages,
            "injected": int(data.corpora.get("injected", {}).get("passages", 0)),
            "tokens": sum(int(each["tokens"]) for each in data.corpora.values()),
        },
        "train": {
            "steps": data.steps,
            "tokens": tokens_read(data),
            "loss": mean([line["loss"] for line in data.metrics[-LOSS_STEPS:] if line["loss"] is not None]),
            "tokens_per_s": median([line["tokens_per_s"] for line in data.metrics if "tokens_per_s" in line]),
            "wall_s": wall.get("pretrain"),
        },
        "facts": summarise_facts(data),
        "index": {
            "passages": int(data.index["passages"]),
            "dims": int(data.index["dims"]),
            "bytes_per_passage": bytes_per_passage(data.index),
            "wall_s": wall.get("index"),
        },
        "methods": {
            name: {key: row[key] for key in (*METRICS, "queries", "own_queries") if key in row}
            for name, row in data.table["methods"].items()
        },
        "wall_s": sum(wall.values()) if wall else None,
    }


def summarise_facts(data: RunData) -> dict[str, Any]:
    curves = data.curves
    return {
        **subjects(data),
        "queries": len(data.probes),
        "target_prob_before": float(np.nanmean(curves.prob_SP[0])),
        "target_prob_after": float(np.nanmean(curves.prob_SP[-1])),
        "exact_match": float(np.nanmean(curves.exact_SP[-1])),
    }


def subjects(data: RunData) -> dict[str, int]:
    """How many invented people facts are about, and, where there are some, how many countries and elements."""
    families = {"country": "countries", "element": "elements"}
    named = {(families.get(str(fact["fact_id"]).partition("/")[0], "people"), fact["subject"]) for fact in data.facts}
    counts = Counter(family for family, _ in named)
    return {"people": counts["people"], **{name: counts[name] for name in families.values() if counts[name]}}


def tokens_read(data: RunData) -> int:
    """Tokens trained on, over all steps: the metrics count them from the start."""
    return int(data.metrics[-1]["tokens"]) if data.metrics else 0


def bytes_per_passage(index: dict[str, Any]) -> int | None:
    """Stored bytes of one row in the index's first codec, norms included."""
    codecs = index["codecs"]
    name = next(iter(index.get("wanted_codecs") or codecs), None)
    return round(codecs[name]["bytes"] / int(index["passages"])) if name in codecs else None


def mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None
