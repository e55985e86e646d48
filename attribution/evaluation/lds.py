"""The linear datamodeling score: do a method's scores foretell what training on part of a corpus does?

For a query, a method's prediction for a subset of the corpus is the sum of the scores of the passages that are in it;
the score is Spearman's rank correlation, over many subsets, of these predictions with what models trained on the
subsets say to the query (Park, Georgiev, Ilyas, Leclerc and Madry 2023, "TRAK: Attributing Model Behavior at Scale",
arXiv 2303.14186, definition 2.3; Ilyas et al. 2022, "Datamodels"). A method's figure is the mean over queries.

Only ranks count: a log-probability and the probability give the same score, and the sums of a method may be in any
unit. Shapes: M subsets (each with a model), Q queries, N passages.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from headwater.configs.errors import MismatchError, UserError


def linear_datamodeling_scores(scores_QN: np.ndarray, inside_MN: np.ndarray, outputs_MQ: np.ndarray) -> np.ndarray:
    """Each query's linear datamodeling score, float64 [Q], in [-1, 1].

    Args:
        scores_QN: real; a higher score says that the passage makes the target more likely.
        inside_MN: bool, the passages that each model was trained on.
        outputs_MQ: real, what each model said: higher is better.

    Raises:
        MismatchError: the shapes do not belong together.
        UserError: a score or an output is not finite.
    """
    return rank_correlations(predictions(scores_QN, inside_MN, outputs_MQ), outputs_MQ)


def predictions(scores_QN: np.ndarray, inside_MN: np.ndarray, outputs_MQ: np.ndarray) -> np.ndarray:
    """What the scores foretell of each model: sums over the passages that are in, float64 [M, Q].

    Arguments and errors are those of `linear_datamodeling_scores`.
    """
    (models, passages), queries = inside_MN.shape, outputs_MQ.shape[1]
    if scores_QN.shape != (queries, passages):
        fix = "one row per query and one column per passage, in their order"
        raise MismatchError(
            "the scores are not of these queries and passages",
            got=scores_QN.shape,
            expected=(queries, passages),
            fix=fix,
        )
    if len(outputs_MQ) != models:
        raise MismatchError("outputs and subsets are of different models", got=len(outputs_MQ), expected=models)
    for what, values in (("score", scores_QN), ("output", outputs_MQ)):
        if not np.isfinite(values).all():
            raise UserError(f"a {what} is not finite", got="NaN or infinity", expected="finite numbers")
    return inside_MN.astype(np.float64) @ scores_QN.astype(np.float64).T


def rank_correlations(a_MQ: np.ndarray, b_MQ: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each column of `a` with that of `b`, float64 [Q]; ties have their mean rank.

    A column without any order (all values equal) foretells nothing: 0.

    Of two trainings on the same subsets from other weights this is how far one foretells the other: the ceiling.

    Raises:
        ValueError: there are not two rows at least, or the shapes differ.
    """
    if a_MQ.shape != b_MQ.shape or a_MQ.ndim != 2 or len(a_MQ) < 2:
        raise ValueError(f"expected two arrays of one shape with two rows at least, got {a_MQ.shape} and {b_MQ.shape}")
    a_MQ, b_MQ = rankdata(a_MQ, axis=0), rankdata(b_MQ, axis=0)
    a_MQ, b_MQ = a_MQ - a_MQ.mean(axis=0), b_MQ - b_MQ.mean(axis=0)
    scale_Q = np.sqrt((a_MQ**2).sum(axis=0) * (b_MQ**2).sum(axis=0))
    return np.divide((a_MQ * b_MQ).sum(axis=0), scale_Q, out=np.zeros(a_MQ.shape[1]), where=scale_Q > 0)


def without_each(a_MQ: np.ndarray, b_MQ: np.ndarray) -> np.ndarray:
    """`rank_correlations` without each of the rows in turn, float64 [M, Q]: what a jackknife over models takes."""
    rows = np.arange(len(a_MQ))
    return np.stack([rank_correlations(a_MQ[rows != row], b_MQ[rows != row]) for row in rows])
