"""The sign matrices: the generator's published answers, slices, keys, and that they look random."""

import pytest
import torch

from headwater.kernels import signs
from headwater.kernels.philox import philox4x32

# Known answers of Philox4x32-10 from the Random123 distribution (kat_vectors).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = philox4x32(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_a_matrix_stays_what_it_was():
    """Stored rows are only comparable if these bits never change: one line of a matrix, written down."""
    assert signs(1, "width", 3, 16)[2].tolist() == FROZEN_ROW


FROZEN_ROW = [1, 1, 1, -1, 1, 1, -1, -1, 1, 1, -1, 1, -1, 1, 1, 1]


@pytest.mark.parametrize("k", [1, 16, 64, 128, 200])
def test_slices_are_slices_of_the_whole(k):
    whole = signs(7, "mlp", 301, k)
    assert whole.shape == (301, k)
    assert set(whole.unique().tolist()) == {-1.0, 1.0}
    for start, stop in ((0, 301), (0, 1), (100, 173), (300, 301), (50, 50)):
        assert torch.equal(signs(7, "mlp", 301, k, start=start, stop=stop), whole[start:stop])
    assert torch.equal(signs(7, "mlp", 9999, k, stop=301), whole), "rows must not depend on how many there are"
    assert torch.equal(signs(7, "mlp", 301, k + 5)[:, :k], whole), "columns must not depend on how many there are"


def test_long_matrices_are_made_in_pieces_without_a_seam(monkeypatch):
    whole = signs(7, "mlp", 300, 16)
    monkeypatch.setattr("headwater.kernels.philox._ROWS_PER_CHUNK", 64)
    assert torch.equal(signs(7, "mlp", 300, 16), whole)


def test_seed_and_key_both_matter():
    matrices = [signs(seed, key, 256, 32) for seed in (0, 1, -1, 2**40) for key in ("q", "k", "")]
    for i, first in enumerate(matrices):
        for second in matrices[:i]:
            assert (first * second).mean().abs() < 0.06


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8])
def test_types_hold_the_same_signs(dtype):
    made = signs(3, "x", 50, 24, dtype=dtype)
    assert made.dtype == dtype
    assert torch.equal(made.float(), signs(3, "x", 50, 24))


def test_columns_are_close_to_orthogonal():
    """n = 4096: the inner products of different columns have standard deviation 1 / 64 of their length."""
    matrix = signs(11, "columns", 4096, 128)
    gram = matrix.T @ matrix / 4096
    off_diagonal = gram - torch.eye(128)
    assert off_diagonal.abs().max() < 6 / 64
    assert abs(off_diagonal.square().sum() / (128 * 127) * 4096 - 1) < 0.1
    assert matrix.mean(0).abs().max() < 6 / 64


@pytest.mark.parametrize("rows", [(-1, 3), (2, 11), (5, 4)])
def test_rows_outside_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        signs(0, "x", 10, 4, start=rows[0], stop=rows[1])


def test_negative_sizes_are_refused():
    with pytest.raises(ValueError, match="negative"):
        signs(0, "x", -1, 4)
