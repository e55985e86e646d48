"""The linear datamodeling score against sums and ranks made one by one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from headwater.attribution.evaluation.bootstrap import jackknife_error
from headwater.attribution.evaluation.lds import linear_datamodeling_scores, rank_correlations, without_each
from headwater.configs.errors import MismatchError, UserError

M, Q, N = 13, 5, 21


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores_QN = np.round(rng.normal(size=(Q, N)), 1)  # few values, so that sums tie
    inside_MN = np.stack([rng.permutation(N) < N // 2 for _ in range(M)])
    outputs_MQ = np.round(rng.normal(size=(M, Q)), 1)
    return scores_QN, inside_MN, outputs_MQ


def slow(scores_QN: np.ndarray, inside_MN: np.ndarray, outputs_MQ: np.ndarray) -> list[float]:
    found = []
    for q in range(len(scores_QN)):
        sums = [round(sum(scores_QN[q, n] for n in range(N) if inside_MN[m, n]), 6) for m in range(M)]
        found.append(float(spearmanr(sums, outputs_MQ[:, q]).statistic))
    return found


def test_it_is_the_rank_correlation_of_sums_with_outputs(drawn):
    scores_QN, inside_MN, outputs_MQ = drawn
    # Rounded, since sums that tie on paper differ in their last bit.
    ours = linear_datamodeling_scores(np.round(scores_QN * 10), inside_MN, outputs_MQ)
    assert ours == pytest.approx(slow(*drawn), abs=1e-12)
    assert ours.shape == (Q,)


def test_true_effects_score_one_and_only_ranks_count(drawn):
    _, inside_MN, _ = drawn
    effects_QN = np.random.default_rng(1).normal(size=(Q, N))
    outputs_MQ = inside_MN @ effects_QN.T
    assert linear_datamodeling_scores(effects_QN, inside_MN, outputs_MQ) == pytest.approx(np.ones(Q))
    assert linear_datamodeling_scores(effects_QN, inside_MN, np.exp(outputs_MQ)) == pytest.approx(np.ones(Q))
    assert linear_datamodeling_scores(-3 * effects_QN, inside_MN, outputs_MQ) == pytest.approx(-np.ones(Q))
    # Queries must not be mixed up.
    turned = linear_datamodeling_scores(np.roll(effects_QN, 1, axis=0), inside_MN, outputs_MQ)
    assert (np.abs(turned) < 0.95).all()


def test_scores_without_any_order_foretell_nothing(drawn):
    _, inside_MN, outputs_MQ = drawn
    assert (linear_datamodeling_scores(np.ones((Q, N)), inside_MN, outputs_MQ) == 0).all()
    assert (rank_correlations(outputs_MQ, np.zeros((M, Q))) == 0).all()


def test_a_jackknife_over_models_is_as_wide_as_other_draws_are():
    """Correlated normals: the mean error of 60 samples against the spread of their correlations, and on one column
    against leaving the rows out one by one."""
    rng = np.random.default_rng(4)
    a_MQ = rng.normal(size=(30, 60))
    b_MQ = 0.6 * a_MQ + 0.8 * rng.normal(size=(30, 60))
    without_MQ = without_each(a_MQ, b_MQ)
    slow = [spearmanr(np.delete(a_MQ[:, 7], m), np.delete(b_MQ[:, 7], m)).statistic for m in range(30)]
    np.testing.assert_allclose(without_MQ[:, 7], slow, atol=1e-12)
    errors = [jackknife_error(without_M) for without_M in without_MQ.T]
    assert np.mean(errors) == pytest.approx(rank_correlations(a_MQ, b_MQ).std(), rel=0.25)
    values = rng.normal(size=25)
    left_out = np.array([np.delete(values, m).mean() for m in range(25)])
    assert jackknife_error(left_out) == pytest.approx(values.std(ddof=1) / 5), "of a mean it is the textbook's"


def test_what_does_not_belong_together_is_refused(drawn):
    scores_QN, inside_MN, outputs_MQ = drawn
    with pytest.raises(MismatchError, match=r"one row per query"):
        linear_datamodeling_scores(scores_QN.T, inside_MN, outputs_MQ)
    with pytest.raises(MismatchError, match="different models"):
        linear_datamodeling_scores(scores_QN, inside_MN, outputs_MQ[1:])
    outputs_MQ[2, 1] = np.nan
    with pytest.raises(UserError, match="output is not finite"):
        linear_datamodeling_scores(scores_QN, inside_MN, outputs_MQ)
    with pytest.raises(ValueError, match="two rows"):
        rank_correlations(outputs_MQ[:1], outputs_MQ[:1])


def test_it_is_dattris():
    """Against the library's own function, where its wheel is installed (`pip install --no-deps dattri`)."""
    metric = pytest.importorskip("dattri.metric")
    import torch

    rng = np.random.default_rng(2)
    scores_QN, outputs_MQ = rng.normal(size=(Q, N)), rng.normal(size=(M, Q))
    inside_MN = np.stack([rng.permutation(N) < N // 2 for _ in range(M)])
    members_MK = torch.tensor(np.stack([np.flatnonzero(inside_N) for inside_N in inside_MN]))
    theirs_Q, _ = metric.lds(torch.tensor(scores_QN.T), (torch.tensor(outputs_MQ), members_MK))
    ours_Q = linear_datamodeling_scores(scores_QN, inside_MN, outputs_MQ)
    np.testing.assert_allclose(ours_Q, theirs_Q.numpy(), atol=1e-6)
