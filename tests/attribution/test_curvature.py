import numpy as np
import pytest
import torch

from headwater.attribution.curvature.accumulator import CurvatureAccumulator
from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.rows.checks import NonFiniteRowsError
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.rows.norms import unit_rows
from headwater.configs.errors import CorruptError, MismatchError, UserError

from .synthetic_rows import make_rows

LAYOUT = RowLayout([("layers.0.qkv", 6, 7), ("layers.0.fc1", 9, 5), ("layers.1.fc2", 4, 8)])


def slice_of(module):
    return next(span.slice for span in LAYOUT if span.name == module)


def dense_autocorrelation(rows_ND, span):
    rows = rows_ND.numpy().astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    part = unit[:, span.slice]
    return part.T @ part / len(part)


def test_layout_places_modules_one_after_the_other_and_survives_json():
    assert LAYOUT.dims == 42 + 45 + 32
    assert slice_of("layers.0.fc1") == slice(42, 87)
    assert RowLayout.from_json(LAYOUT.to_json()) == LAYOUT
    with pytest.raises(UserError, match="named once"):
        RowLayout([("a", 2, 2), ("a", 2, 2)])


def test_autocorrelation_is_the_mean_over_whole_rows_of_unit_norm():
    rows_ND = make_rows(LAYOUT, 301)
    curvature = CurvatureAccumulator(LAYOUT)
    curvature.add(rows_ND)
    for span in LAYOUT:
        expected = dense_autocorrelation(rows_ND, span)
        got = curvature.autocorrelation()[span.name].numpy()
        assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max()
    raw = rows_ND[:, LAYOUT.spans[0].slice].double().numpy()
    assert not np.allclose(curvature.autocorrelation()[LAYOUT.names[0]].numpy(), raw.T @ raw / 301, rtol=0.1)


def test_tiny_and_zero_rows_are_no_trouble():
    rows_ND = make_rows(LAYOUT, 40)
    small, mixed = CurvatureAccumulator(LAYOUT), CurvatureAccumulator(LAYOUT)
    small.add(rows_ND * 1e-18)
    mixed.add(torch.cat([rows_ND, torch.zeros(3, LAYOUT.dims)]))
    assert mixed.count == 40
    for name in LAYOUT.names:
        assert torch.allclose(small.autocorrelation()[name], mixed.autocorrelation()[name], atol=1e-9)


def test_ranks_and_resume_give_the_same_bits():
    parts = [make_rows(LAYOUT, 100, rows_seed=seed) for seed in range(4)]
    whole, left, right = (CurvatureAccumulator(LAYOUT) for _ in range(3))
    for part_ND in parts:
        whole.add(part_ND)
    right.add(parts[3])
    left.add(parts[2])
    resumed = CurvatureAccumulator(LAYOUT)
    resumed.load_state_dict(left.state_dict())
    resumed.add(parts[0])
    right.add(parts[1])
    resumed.merge(right)
    assert resumed.count == whole.count == 400
    for name in LAYOUT.names:
        assert torch.equal(resumed.autocorrelation()[name], whole.autocorrelation()[name])


def test_a_state_of_other_modules_is_refused():
    other = CurvatureAccumulator(RowLayout([("layers.0.qkv", 6, 7)]))
    with pytest.raises(MismatchError, match="other modules"):
        CurvatureAccumulator(LAYOUT).load_state_dict(other.state_dict())


def test_rows_with_nan_are_refused_by_number():
    rows_ND = make_rows(LAYOUT, 9)
    rows_ND[4, 3] = torch.nan
    with pytest.raises(NonFiniteRowsError, match="rows 4"):
        CurvatureAccumulator(LAYOUT).add(rows_ND)


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_whitening_is_the_inverse_root_of_the_damped_autocorrelation(damping):
    rows_ND = make_rows(LAYOUT, 80)
    curvature = CurvatureAccumulator(LAYOUT)
    curvature.add(rows_ND)
    whitening = Whitening.from_autocorrelation(LAYOUT, curvature.autocorrelation(), damping, curvature.count)
    white = whitening.apply(rows_ND).double().numpy()
    for span in LAYOUT:
        r = dense_autocorrelation(rows_ND, span)
        r += damping * np.trace(r) / span.dims * np.eye(span.dims)
        # The square of the root is the inverse: g^T R^{-1} g, without any eigendecomposition.
        part = rows_ND[:, span.slice].double().numpy()
        expected = np.einsum("nd,nd->n", part, np.linalg.solve(r, part.T).T)
        assert np.allclose((white[:, span.slice] ** 2).sum(axis=1), expected, rtol=1e-4)
        root = whitening.roots[span.name]
        assert torch.equal(root, root.T)


def test_whitening_is_undone_and_does_not_depend_on_the_batch():
    rows_ND = make_rows(LAYOUT, 600)
    curvature = CurvatureAccumulator(LAYOUT)
    curvature.add(rows_ND)
    whitening = Whitening.from_autocorrelation(LAYOUT, curvature.autocorrelation(), 0.1)
    white_ND = whitening.apply(rows_ND)
    assert torch.allclose(whitening.unapply(white_ND), rows_ND, rtol=1e-4, atol=1e-3 * float(rows_ND.abs().max()))
    assert torch.equal(whitening.apply(rows_ND[256:512]), white_ND[256:512])
    assert torch.equal(Whitening.none(LAYOUT).apply(rows_ND), rows_ND)


def test_a_module_without_gradient_stays_zero():
    rows_ND = make_rows(LAYOUT, 50)
    rows_ND[:, slice_of("layers.0.fc1")] = 0
    curvature = CurvatureAccumulator(LAYOUT)
    curvature.add(rows_ND)
    white_ND = Whitening.from_autocorrelation(LAYOUT, curvature.autocorrelation(), 0.1).apply(rows_ND)
    assert bool(torch.isfinite(white_ND).all())
    assert not bool(white_ND[:, slice_of("layers.0.fc1")].any())


def test_saved_curvature_comes_back_and_refuses_another_layout(tmp_path):
    curvature = CurvatureAccumulator(LAYOUT)
    curvature.add(make_rows(LAYOUT, 50))
    whitening = Whitening.from_autocorrelation(LAYOUT, curvature.autocorrelation(), 0.1, curvature.count)
    path = tmp_path / "curvature.safetensors"
    mark = whitening.save(path)
    loaded = Whitening.load(path, LAYOUT)
    assert (loaded.fingerprint, loaded.count, loaded.damping) == (mark, 50, 0.1)
    assert unit_rows(loaded.eigenvalues["layers.1.fc2"][None]).shape == (1, 32)
    for name in LAYOUT.names:
        assert torch.equal(loaded.roots[name], whitening.roots[name])
    assert whitening.save(tmp_path / "again.safetensors") == mark
    with pytest.raises(MismatchError, match="another row layout"):
        Whitening.load(path, RowLayout([("layers.0.qkv", 6, 7)]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptError, match="not a readable curvature"):
        Whitening.load(path, LAYOUT)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_must_be_positive(damping):
    curvature = CurvatureAccumulator(LAYOUT)
    curvature.add(make_rows(LAYOUT, 5))
    with pytest.raises(UserError, match="damping"):
        Whitening.from_autocorrelation(LAYOUT, curvature.autocorrelation(), damping)
