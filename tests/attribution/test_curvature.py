from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from headwater.attribution.curvature.files import load_whitening
from headwater.attribution.curvature.sums import SUMS, AutocorrelationSums, FactorSums, dealt
from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.rows.checks import NonFiniteRowsError
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import CorruptError, MismatchError, UserError

from ..jobs import call
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
    curvature = AutocorrelationSums(LAYOUT)
    curvature.add(rows_ND)
    for span in LAYOUT:
        expected = dense_autocorrelation(rows_ND, span)
        got = curvature.autocorrelation()[span.name].numpy()
        assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max()
    raw = rows_ND[:, LAYOUT.spans[0].slice].double().numpy()
    assert not np.allclose(curvature.autocorrelation()[LAYOUT.names[0]].numpy(), raw.T @ raw / 301, rtol=0.1)


def test_factors_are_the_means_of_the_two_products():
    rows_ND = make_rows(LAYOUT, 301)
    sums = FactorSums(LAYOUT)
    sums.add(rows_ND)
    unit = rows_ND.numpy().astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for span in LAYOUT:
        g_NOI = unit[:, span.slice].reshape(-1, span.k_out, span.k_in)
        a_OO, b_II = (each.numpy() for each in sums.factors()[span.name])
        for got, expected in (
            (a_OO, np.einsum("noi,npi->op", g_NOI, g_NOI) / 301),
            (b_II, np.einsum("noi,noj->ij", g_NOI, g_NOI) / 301),
        ):
            # A block's sum of 256 x 9 squares in float32.
            assert np.abs(got - expected).max() < 5e-6 * np.abs(expected).max()
        assert np.trace(a_OO) == pytest.approx(np.trace(b_II), rel=1e-6)


@pytest.mark.parametrize("share", [1e-4, 1e-6])
@pytest.mark.parametrize("kind", list(SUMS))
def test_a_module_with_little_of_the_norm_is_summed_as_well_as_any(kind, share):
    rows_ND = make_rows(LAYOUT, 200)
    faint_ND = rows_ND.clone()
    faint_ND[:, slice_of("layers.1.fc2")] *= share
    sums = SUMS[kind](LAYOUT)
    sums.add(faint_ND)
    unit = faint_ND.numpy().astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    part = unit[:, slice_of("layers.1.fc2")]
    for what in sums.sizes(LAYOUT.spans[2]):
        g_NOI = part.reshape(-1, 4, 8)
        expected = {
            "sum": part.T @ part,
            "out": np.einsum("noi,npi->op", g_NOI, g_NOI),
            "in": np.einsum("noi,noj->ij", g_NOI, g_NOI),
        }[what]
        got = sums.means(what)["layers.1.fc2"].numpy()
        assert np.abs(got - expected / 200).max() < 1e-5 * np.abs(expected / 200).max()


def test_tiny_and_zero_rows_are_no_trouble():
    rows_ND = make_rows(LAYOUT, 40)
    small, mixed = AutocorrelationSums(LAYOUT), AutocorrelationSums(LAYOUT)
    small.add(rows_ND * 1e-18)
    mixed.add(torch.cat([rows_ND, torch.zeros(3, LAYOUT.dims)]))
    assert mixed.count == 40
    for name in LAYOUT.names:
        assert torch.allclose(small.autocorrelation()[name], mixed.autocorrelation()[name], atol=1e-9)


@pytest.mark.parametrize("kind", list(SUMS))
def test_ranks_and_resume_give_the_same_bits(kind):
    parts = [make_rows(LAYOUT, 100, rows_seed=seed) for seed in range(4)]
    whole, left, right = (SUMS[kind](LAYOUT) for _ in range(3))
    for part_ND in parts:
        whole.add(part_ND)
    right.add(parts[3])
    left.add(parts[2])
    resumed = SUMS[kind](LAYOUT)
    resumed.load_state_dict(left.state_dict())
    resumed.add(parts[0])
    right.add(parts[1])
    resumed.merge(right)
    assert resumed.count == whole.count == 400
    for name in LAYOUT.names:
        for what in whole.sizes(LAYOUT.spans[0]):
            assert torch.equal(resumed.means(what)[name], whole.means(what)[name])


@pytest.mark.parametrize("kind", list(SUMS))
def test_a_state_of_other_modules_is_refused(kind):
    other = SUMS[kind](RowLayout([("layers.0.qkv", 6, 7)]))
    with pytest.raises(MismatchError, match="other modules"):
        SUMS[kind](LAYOUT).load_state_dict(other.state_dict())


@pytest.mark.parametrize("kind", list(SUMS))
def test_rows_with_nan_are_refused_by_number(kind):
    rows_ND = make_rows(LAYOUT, 9)
    rows_ND[4, 3] = torch.nan
    with pytest.raises(NonFiniteRowsError, match="rows 4"):
        SUMS[kind](LAYOUT).add(rows_ND)


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_kronecker_whitening_is_the_inverse_root_of_the_damped_product(damping):
    """Against the dense (A + eps_A) (x) (B + eps_B) / tr A, without any eigendecomposition."""
    rows_ND = make_rows(LAYOUT, 80)
    sums = FactorSums(LAYOUT)
    sums.add(rows_ND)
    whitening = sums.whitening(damping)
    white = whitening.apply(rows_ND).double().numpy()
    assert np.allclose(whitening.unapply(torch.from_numpy(white).float()), rows_ND, rtol=1e-3, atol=1e-4)
    for span in LAYOUT:
        a_OO, b_II = (each.numpy().copy() for each in sums.factors()[span.name])
        trace = np.trace(a_OO)
        eigenvalues = np.sort(np.kron(np.linalg.eigvalsh(a_OO), np.linalg.eigvalsh(b_II)) / trace)
        assert np.allclose(np.sort(whitening.eigenvalues()[span.name].numpy()), eigenvalues, rtol=1e-4, atol=1e-9)
        assert eigenvalues.sum() == pytest.approx(np.trace(dense_autocorrelation(rows_ND, span)), rel=1e-6)
        a_OO += damping * trace / span.k_out * np.eye(span.k_out)
        b_II += damping * trace / span.k_in * np.eye(span.k_in)
        r = np.kron(a_OO, b_II) / trace
        part = rows_ND[:, span.slice].double().numpy()
        expected = np.einsum("nd,nd->n", part, np.linalg.solve(r, part.T).T)
        assert np.allclose((white[:, span.slice] ** 2).sum(axis=1), expected, rtol=1e-4)


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_whitening_is_the_inverse_root_of_the_damped_autocorrelation(damping):
    rows_ND = make_rows(LAYOUT, 80)
    curvature = AutocorrelationSums(LAYOUT)
    curvature.add(rows_ND)
    whitening = curvature.whitening(damping)
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


@pytest.mark.parametrize("kind", list(SUMS))
def test_whitening_is_undone_and_does_not_depend_on_the_batch(kind):
    rows_ND = make_rows(LAYOUT, 600)
    curvature = SUMS[kind](LAYOUT)
    curvature.add(rows_ND)
    whitening = curvature.whitening(0.1)
    white_ND = whitening.apply(rows_ND)
    assert torch.allclose(whitening.unapply(white_ND), rows_ND, rtol=1e-4, atol=1e-3 * float(rows_ND.abs().max()))
    assert torch.equal(whitening.apply(rows_ND[256:512]), white_ND[256:512])
    assert torch.equal(Whitening.none(LAYOUT).apply(rows_ND), rows_ND)


@pytest.mark.parametrize("kind", list(SUMS))
def test_a_module_without_gradient_stays_zero(kind):
    rows_ND = make_rows(LAYOUT, 50)
    rows_ND[:, slice_of("layers.0.fc1")] = 0
    curvature = SUMS[kind](LAYOUT)
    curvature.add(rows_ND)
    white_ND = curvature.whitening(0.1).apply(rows_ND)
    assert bool(torch.isfinite(white_ND).all())
    assert not bool(white_ND[:, slice_of("layers.0.fc1")].any())


@pytest.mark.parametrize("kind", list(SUMS))
def test_saved_curvature_comes_back_and_refuses_another_layout(kind, tmp_path):
    rows_ND = make_rows(LAYOUT, 50)
    sums = SUMS[kind](LAYOUT)
    sums.add(rows_ND)
    whitening = sums.whitening(0.1)
    path = tmp_path / "curvature.safetensors"
    mark = whitening.save(path)
    loaded = load_whitening(path, LAYOUT)
    assert (loaded.kind, loaded.fingerprint, loaded.count, loaded.damping) == (kind, mark, 50, 0.1)
    assert loaded.eigenvalues()["layers.1.fc2"].shape == (32,)
    assert torch.equal(loaded.apply(rows_ND), whitening.apply(rows_ND))
    assert whitening.save(tmp_path / "again.safetensors") == mark
    with pytest.raises(MismatchError, match="another row layout"):
        load_whitening(path, RowLayout([("layers.0.qkv", 6, 7)]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptError, match="not a readable curvature"):
        load_whitening(path, LAYOUT)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("kind", list(SUMS))
def test_damping_must_be_positive(kind, damping):
    curvature = SUMS[kind](LAYOUT)
    curvature.add(make_rows(LAYOUT, 5))
    with pytest.raises(UserError, match="damping"):
        curvature.whitening(damping)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_modules_are_dealt_out_once_and_evenly(ranks):
    layout = RowLayout((f"layer.{n}", 4 + n % 3, 6) for n in range(40))
    owners = dealt(layout, ranks)
    assert [span.name for span, _ in owners] == layout.names
    work = [sum(span.dims**3 for span, owner in owners if owner == rank) for rank in range(ranks)]
    assert max(work) - min(work) <= max(span.dims for span in layout) ** 3
    assert [owner for _, owner in dealt(LAYOUT, 40)] != [0, 0, 0]


def root_shared(directory):
    """Writes what this rank has of the whitening, and how many modules it took."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    sums = AutocorrelationSums(LAYOUT)
    sums.add(torch.load(f"{directory}/rows.pt"))
    with mock.patch.object(torch.linalg, "eigh", wraps=torch.linalg.eigh) as eigh:
        whitening = sums.whitening(0.1, rank, ranks)
    torch.save((whitening.tensors(), eigh.call_count), f"{directory}/{rank}.pt")


def test_ranks_share_the_eigendecompositions(tmp_path):
    rows_ND = make_rows(LAYOUT, 100)
    torch.save(rows_ND, tmp_path / "rows.pt")
    log = tmp_path / "log"
    assert call(root_shared, str(tmp_path), ranks=2, log=log) == 0, log.read_text()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert sorted(taken for _, taken in found) == [1, 2]
    alone = AutocorrelationSums(LAYOUT)
    alone.add(rows_ND)
    for name, value in alone.whitening(0.1).tensors().items():
        assert torch.equal(found[0][0][name], found[1][0][name])
        assert torch.allclose(found[0][0][name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))
