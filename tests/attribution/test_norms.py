import numpy as np
import pytest
import torch

from headwater.attribution.rows.norms import CHUNK, exact_norms, row_norms, unit_rows


@pytest.mark.parametrize("dims", [1, 63, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-19, 1e-13, 1e17, 1e30])
def test_norms_of_any_size(dims, scale):
    """Also of rows whose squares, or whose norms, float32 cannot hold."""
    rows_ND = torch.randn(7, dims, generator=torch.Generator().manual_seed(dims)) * scale
    rows_ND[3] = 0
    rows_ND[5] *= 1e-6
    wide = rows_ND.numpy().astype(np.float64)
    expected = np.linalg.norm(wide, axis=1)
    np.testing.assert_allclose(exact_norms(rows_ND).numpy(), expected, rtol=2e-7)
    np.testing.assert_allclose(row_norms(rows_ND).numpy(), expected.astype(np.float32), rtol=3e-7)
    unit_ND = unit_rows(rows_ND).numpy()
    assert not unit_ND[3].any()
    others = np.arange(7) != 3
    np.testing.assert_allclose(unit_ND[others], wide[others] / expected[others, None], rtol=1e-6, atol=1e-12)


def test_a_row_that_is_not_finite_has_no_finite_norm():
    rows_ND = torch.ones(3, 2 * CHUNK)
    rows_ND[0, 5], rows_ND[2, -1] = torch.nan, torch.inf
    assert torch.isfinite(exact_norms(rows_ND)).tolist() == [False, True, False]


def test_a_rows_norm_does_not_depend_on_its_neighbours():
    rows_ND = torch.randn(300, 2 * CHUNK + 9, generator=torch.Generator().manual_seed(0))
    together = exact_norms(rows_ND)
    assert torch.equal(torch.cat([exact_norms(part) for part in rows_ND.split(37)]), together)
