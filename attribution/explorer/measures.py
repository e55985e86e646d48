"""Metrics of the questions that a filter leaves, with bootstrap intervals, fast enough to follow typing.

The bootstrap of a mean needs only how often each distinct value is drawn, which is multinomial: exactly the resampling
of evaluation/bootstrap.py, at a cost that goes with the distinct values and not with the questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.attribution.evaluation.metrics import hit, precision, recall, reciprocal_rank
from headwater.attribution.explorer.sets import AnswerSet

DRAWS = 300_000
"""Binomial draws of an interval, at most: distinct values x resamples."""
RESAMPLES = (500, 4_000)
LEVEL = 0.95
CUTOFF = 10


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of each question; NaN where it has no value."""

    name: str
    label: str
    about: str
    values_Q: np.ndarray


def measures_of(answers: AnswerSet, known_Q: np.ndarray | None, prob_Q: np.ndarray | None) -> list[Measure]:
    """What can be measured of a set: retrieval where gold is known, what the model knows where it was probed."""
    found = retrieval_of(answers)
    if known_Q is not None and np.isfinite(known_Q).any():
        found.append(Measure("known", "Answered right", "share that the model answers by itself", known_Q))
    if prob_Q is not None and np.isfinite(prob_Q).any():
        found.append(Measure("prob", "Probability", "mean probability of the answer at the last step", prob_Q))
    return found


def retrieval_of(answers: AnswerSet) -> list[Measure]:
    """Retrieval against gold: exact where the ranks over the whole corpus are known, else within what is listed."""
    if answers.gold_ranks is not None:
        having = np.array([bool(each) for each in answers.gold_ranks])
        ranks = [each for each in answers.gold_ranks if each]
        if not ranks:
            return []
        named = [
            ("mrr", "MRR", "1 / rank of the first gold passage, mean", reciprocal_rank(ranks)),
            ("recall@10", "Recall@10", "share of the gold passages among the first 10", recall(ranks, CUTOFF)),
            ("hit@10", "Hit@10", "share with a gold passage among the first 10", hit(ranks, CUTOFF)),
            ("precision@10", "Precision@10", "share of gold among the first 10", precision(ranks, CUTOFF)),
        ]
        return [Measure(name, label, about, spread_out(values, having)) for name, label, about, values in named]
    judged = answers.gold_found >= 0
    if not judged.any():
        return []
    first, listed = answers.first_gold, f"of the {answers.depth} listed"
    reciprocal = np.where(first >= 0, 1 / (1.0 + np.maximum(first, 0)), 0.0)
    hits = ((first >= 0) & (first < CUTOFF)).astype(np.float64)
    return [
        Measure(
            "mrr", "MRR", f"1 / rank of the first gold passage {listed}, 0 where none is", nan_but(reciprocal, judged)
        ),
        Measure("hit@10", "Hit@10", "share with a gold passage among the first 10", nan_but(hits, judged)),
        Measure(
            "precision@10",
            "Precision@10",
            "share of gold among the first 10",
            nan_but(answers.gold_found / float(CUTOFF), judged),
        ),
    ]


def spread_out(values: np.ndarray, having: np.ndarray) -> np.ndarray:
    whole = np.full(len(having), np.nan)
    whole[having] = values
    return whole


def nan_but(values: np.ndarray, having: np.ndarray) -> np.ndarray:
    return np.where(having, values, np.nan)


def interval(values_Q: np.ndarray, seed: int = 0) -> tuple[float, float, float] | None:
    """(mean, low, high) of the values that are known: the percentile bootstrap interval at 95%; None without any."""
    known = values_Q[np.isfinite(values_Q)]
    if not len(known):
        return None
    distinct, counts = np.unique(known, return_counts=True)
    if len(distinct) == 1:
        return float(distinct[0]), float(distinct[0]), float(distinct[0])
    if len(distinct) * RESAMPLES[0] > DRAWS:
        means = normal_means(known, seed)
    else:
        resamples = int(np.clip(DRAWS // len(distinct), *RESAMPLES))
        drawn = np.random.default_rng(seed).multinomial(len(known), counts / len(known), size=resamples)
        means = drawn @ distinct / len(known)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(known.mean()), float(low), float(high)


def normal_means(known: np.ndarray, seed: int) -> np.ndarray:
    """Means of resamples of hundreds of distinct values: their limit, the normal distribution."""
    error = known.std() / np.sqrt(len(known))
    return np.random.default_rng(seed).normal(known.mean(), error, size=RESAMPLES[1])
