"""The task's curvature at the scan, against the dense formula."""

import numpy as np
import pytest
import torch

from headwater.attribution.curvature.task import TaskCurvature, paper_lambda
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.search.full_ranking import score_all
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.search.scan import scan
from headwater.attribution.search.scorer import Scoring

from .dense_formula import LAMBDA, LAYOUT, N, build, dense_scores, queries_of
from .synthetic_rows import make_rows


@pytest.fixture(scope="module")
def rows_ND():
    return make_rows(LAYOUT, N)


@pytest.fixture(scope="module", params=["full", "kronecker"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def index(tmp_path_factory, rows_ND, kind):
    return build(tmp_path_factory.mktemp("index"), rows_ND, kind=kind)


def test_the_task_matters_to_the_scores(index, rows_ND, kind):
    """Negative control of the test above: without mixing, or with another lambda, the scores are others."""
    queries_QD = queries_of(7)
    mixed = dense_scores(rows_ND, queries_QD, kind=kind)
    assert np.abs(mixed - dense_scores(rows_ND, queries_QD, kind=kind, lambda_=0)).max() > 0.05
    assert np.abs(mixed - dense_scores(rows_ND, queries_QD, kind=kind, lambda_=0.9)).max() > 0.05


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 0.99])
def test_every_lambda(index, rows_ND, lambda_, kind):
    queries_QD = queries_of(7)
    options = ScanOptions(scoring=Scoring(task_weight=lambda_))
    got = score_all([Source(index, queries_QD)], options)
    assert np.abs(got - dense_scores(rows_ND, queries_QD, kind=kind, lambda_=lambda_)).max() < 1e-4


def test_a_low_rank_of_s_is_exact_when_s_has_that_rank(index, rows_ND, kind):
    """Three distinct directions among 40 queries: rank 3 loses nothing, rank 2 does."""
    mix = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    queries_QD = mix @ queries_of(3)
    expected = dense_scores(rows_ND, queries_QD, kind=kind, lambda_=0.95)
    errors = {}
    for rank in (None, 3, 2, 0):
        options = ScanOptions(scoring=Scoring(rank=rank, task_weight=0.95))
        got = score_all([Source(index, queries_QD)], options)
        errors[rank] = np.abs(got - expected).max()
    assert errors[None] < 1e-4
    assert errors[3] < 1e-4
    assert errors[2] > 1e-3
    assert errors[0] > errors[2]


def test_full_rank_with_more_queries_than_dimensions(index, rows_ND, kind):
    queries_QD = queries_of(500)
    task = TaskCurvature.from_queries(index.whitening, queries_QD, LAMBDA)
    assert [len(task.weights[span.name]) for span in LAYOUT] == [span.dims for span in LAYOUT]
    got = score_all([Source(index, queries_QD)])
    assert np.abs(got - dense_scores(rows_ND, queries_QD, kind=kind)).max() < 1e-4
    got = score_all([Source(index, queries_QD)], ScanOptions(scoring=Scoring(rank=16, task_weight=0.25)))
    assert np.abs(got - dense_scores(rows_ND, queries_QD, kind=kind, lambda_=0.25)).max() < 0.05


def test_another_set_of_queries_may_stand_for_the_task(index, rows_ND, kind):
    queries_QD, task_QD = queries_of(2), queries_of(60)
    got = score_all([Source(index, queries_QD, task_queries=task_QD)])
    assert np.abs(got - dense_scores(rows_ND, queries_QD, kind=kind, task_QD=task_QD)).max() < 1e-4


def test_the_papers_lambda_balances_the_spectra(index, rows_ND, kind):
    queries_QD = queries_of(40)
    lambda_ = paper_lambda(index.whitening, queries_QD)
    unit = queries_QD.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pooled_q = np.sort(
        np.concatenate([np.linalg.eigvalsh(unit[:, s.slice].T @ unit[:, s.slice] / 40) for s in LAYOUT])
    )[::-1]
    pooled_t = np.sort(np.concatenate([index.whitening.eigenvalues()[s.name].numpy() for s in LAYOUT]))[::-1]
    k = round(LAYOUT.dims * 1000 / 65536)
    assert lambda_ * pooled_q[k] == pytest.approx((1 - lambda_) * pooled_t[k], rel=1e-5)
    result = scan([Source(index, queries_QD)], ScanOptions(scoring=Scoring(task_weight="paper")))
    assert result.lambdas == [pytest.approx(lambda_)]
    # The rule goes with the paper's S, which no module's width is taken out of.
    got = score_all([Source(index, queries_QD)], ScanOptions(scoring=Scoring(task_weight="paper")))
    exact, scaled = (
        dense_scores(rows_ND, queries_QD, kind=kind, lambda_=lambda_, scaled=scaled) for scaled in (False, True)
    )
    assert np.abs(got - exact).max() < 1e-4
    assert np.abs(got - scaled).max() > 1e-2


def test_a_tasks_weight_means_the_same_in_modules_of_any_width(tmp_path):
    """One eigenvalue of the task's curvature is lambda's in a module of 4 numbers as in one of 1,600."""
    layout = RowLayout([("narrow", 2, 2), ("wide", 40, 40)])
    index = build(tmp_path, make_rows(layout, N), kind="kronecker", layout=layout)
    queries_QD = make_rows(layout, 12, rows_seed=99)
    scaled, exact = (
        TaskCurvature.from_queries(index.whitening, queries_QD, LAMBDA, scaled=scaled) for scaled in (True, False)
    )
    for name, s_r in scaled.eigenvalues.items():
        assert float(s_r.square().sum() / s_r.sum()) == pytest.approx(1, rel=1e-9)
        assert torch.allclose(s_r / s_r.sum(), exact.eigenvalues[name] / exact.eigenvalues[name].sum())
    wide, narrow = (exact.eigenvalues[name] for name in ("wide", "narrow"))
    assert wide.square().sum() / wide.sum() > 10 * narrow.square().sum() / narrow.sum()
