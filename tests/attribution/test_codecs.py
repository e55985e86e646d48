import numpy as np
import pytest
import torch

from headwater.attribution.curvature.sums import AutocorrelationSums
from headwater.attribution.curvature.task import TaskCurvature
from headwater.attribution.index.codecs.registry import CODECS, make_codec
from headwater.attribution.index.codecs.rotation import rotate, rotate_back
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.rows.norms import unit_rows
from headwater.attribution.search.scorer import BlockScorer, PreparedQueries, Scoring
from headwater.configs.errors import UserError
from headwater.kernels.coded import LARGEST

from .synthetic_rows import make_rows

ODD = RowLayout([("a", 6, 7), ("b", 9, 5), ("c", 1, 1), ("d", 4, 8), ("e", 3, 43)])
EVEN = RowLayout([("a", 16, 16), ("b", 8, 32), ("c", 32, 32)])

LARGEST_ERROR = {"fp32": 0.0, "bf16": 0.003, "int8": 0.02, "int4": 0.13, "sign": 0.63}
LARGEST_ERROR |= {"factors16": 0.8, "factors8": 0.9, "factors4": 0.95}
"""Root of the mean squared error of a unit row. A Gaussian's are .107 (4 bits) and .603 (1 bit); it is of no low rank,
which is what a few products of signs are made for."""


@pytest.mark.parametrize("layout", [ODD, EVEN], ids=["odd", "even"])
@pytest.mark.parametrize("name", list(CODECS))
def test_decoded_rows_are_within_the_codecs_error(name, layout):
    unit_ND = unit_rows(make_rows(layout, 400))
    codec = make_codec(name, layout)
    fields = codec.encode(unit_ND)
    got_ND = codec.decode(fields)
    assert got_ND.dtype == torch.float32
    error = float((got_ND - unit_ND).square().sum(dim=1).mean().sqrt())
    assert error <= LARGEST_ERROR[name]
    assert {key: (value.dtype, value.shape[1]) for key, value in fields.items()} == codec.fields
    assert sum(value[0].nbytes for value in fields.values()) == codec.bytes_per_row


@pytest.mark.parametrize("rotation", [1, 2])
@pytest.mark.parametrize("name", list(CODECS))
def test_products_in_the_codecs_own_coordinates_are_products(name, rotation):
    unit_ND, queries_QD = unit_rows(make_rows(ODD, 60)), make_rows(ODD, 5, rows_seed=9)
    codec = make_codec(name, ODD, rotation)
    fields = codec.encode(unit_ND)
    own = codec.block(fields, torch.float32) @ codec.rotate(queries_QD).T
    assert torch.allclose(own, codec.decode(fields) @ queries_QD.T, atol=1e-5 * float(queries_QD.norm(dim=1).max()))


@pytest.mark.parametrize("name", list(CODECS))
def test_rows_are_coded_one_by_one(name):
    unit_ND = unit_rows(make_rows(ODD, 40))
    codec = make_codec(name, ODD)
    together, alone = codec.encode(unit_ND), codec.encode(unit_ND[7:9])
    for key, value in together.items():
        same = value[7:9] == alone[key]
        assert float(same.float().mean()) > 0.99  # a number on the edge of two codes may round either way
    assert torch.isfinite(codec.decode(codec.encode(torch.zeros(3, ODD.dims)))).all()
    assert not codec.decode(codec.encode(torch.zeros(3, ODD.dims))).any()


def test_sign_rows_are_signs_with_the_mean_magnitude_of_their_module():
    unit_ND = unit_rows(make_rows(ODD, 30))
    codec = make_codec("sign", ODD)
    got_ND = codec.decode(codec.encode(unit_ND))
    for span in ODD:
        part_Nd = unit_ND[:, span.slice]
        gain_N1 = part_Nd.abs().mean(dim=1, keepdim=True)
        torch.testing.assert_close(
            got_ND[:, span.slice], torch.where(part_Nd >= 0, gain_N1, -gain_N1), rtol=4e-3, atol=0
        )


def low_rank(layout: RowLayout, count: int, tokens: int) -> torch.Tensor:
    """Unit rows as passages of so many tokens have them: each module a sum of so many outer products."""
    draw, parts = torch.Generator().manual_seed(3), []
    for span in layout:
        deltas = torch.randn(count, tokens, span.k_out, generator=draw)
        inputs = torch.randn(count, tokens, span.k_in, generator=draw)
        parts.append(torch.einsum("ntO,ntI->nOI", deltas, inputs).flatten(1))
    return unit_rows(torch.cat(parts, dim=1))


@pytest.mark.parametrize("layout", [ODD, EVEN], ids=["odd", "even"])
def test_products_of_signs_are_what_their_bits_say(layout):
    """Read bit by bit; more terms are nearer; a matrix that is one product of signs is kept as it is."""
    rows_ND, errors = low_rank(layout, 30, 2), {}
    for name, terms in (("factors4", 4), ("factors8", 8), ("factors16", 16)):
        codec = make_codec(name, layout)
        fields = codec.encode(rows_ND)
        got_ND = codec.decode(fields)
        bits, start = np.unpackbits(fields["code"].numpy(), axis=1)[5], 0
        for m, span in enumerate(layout):
            expected, width = np.zeros((span.k_out, span.k_in)), -(-(span.k_out + span.k_in) // 8) * 8
            for term in range(terms):
                signs = 2.0 * bits[start : start + width] - 1
                side = signs[: span.k_out], signs[span.k_out : span.k_out + span.k_in]
                expected += float(fields["scale"][5, m * terms + term]) * np.outer(*side)
                start += width
            np.testing.assert_allclose(got_ND[5, span.slice], expected.ravel(), atol=1e-6)
        errors[terms] = float((got_ND - rows_ND).square().sum(dim=1).mean().sqrt())
    assert errors[16] < errors[8] < errors[4] < 0.75
    draw = torch.Generator().manual_seed(1)
    exact_ND = torch.cat(
        [
            torch.outer(*(torch.randint(0, 2, (side,), generator=draw) * 2.0 - 1 for side in (span.k_out, span.k_in)))
            .mul(0.125)
            .flatten()[None]
            for span in layout
        ],
        dim=1,
    )
    assert torch.equal(codec.decode(codec.encode(exact_ND)), exact_ND)


def test_outliers_do_not_drown_the_rest():
    """One huge number per module: the rotation spreads it, so that the others keep their part of the product."""
    unit_ND = torch.randn(50, EVEN.dims, generator=torch.Generator().manual_seed(0))
    for span in EVEN:
        unit_ND[:, span.start] = 12.0
    unit_ND = unit_rows(unit_ND)
    error = make_codec("int4", EVEN).decode(make_codec("int4", EVEN).encode(unit_ND)) - unit_ND
    assert float(error.square().sum(dim=1).mean().sqrt()) < 0.13


def test_sizes():
    dims = 8192
    layout = RowLayout([(str(i), 32, 32) for i in range(8)])
    sizes = {name: make_codec(name, layout).bytes_per_row + 8 for name in CODECS}
    assert sizes["fp32"] == 4 * dims + 8
    assert sizes["bf16"] == 2 * dims + 8
    assert sizes["int8"] == dims + 16 + 8
    assert sizes["int4"] == dims // 2 + 16 + 8
    assert 16 * sizes["sign"] <= 4 * dims


@pytest.mark.parametrize("dims", [1, 2, 3, 33, 37, 64, 65, 100, 1023, 2025])
def test_rotations_are_orthogonal_and_spread(dims):
    matrix = rotate(torch.eye(dims)).double().numpy()
    assert np.abs(matrix @ matrix.T - np.eye(dims)).max() < 1e-5
    if dims & (dims - 1) == 0:
        np.testing.assert_allclose(np.abs(matrix), dims**-0.5, rtol=1e-6)
    elif dims >= 33:  # every coordinate goes into all others, and into none nor into either half for the most part
        assert np.abs(matrix).max() < 5 / dims**0.5
        half_d = (matrix[:, : dims // 2] ** 2).sum(axis=1)
        assert 0.2 < half_d.min() < half_d.max() < 0.8


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dims", [1, 48, 64, 65])
def test_a_rotation_is_undone(dims, version):
    rows_Nd = torch.randn(5, dims, generator=torch.Generator().manual_seed(0))
    there = rotate(rows_Nd, version)
    assert torch.allclose(rotate_back(there, version), rows_Nd, atol=1e-5)
    assert torch.allclose(there.norm(dim=1), rows_Nd.norm(dim=1), rtol=1e-5)


def test_rows_coded_before_the_second_signs_are_read_as_they_were_written():
    """The first map, from its definition: butterflies between random signs, first and last coordinates, a shuffle."""
    dims, power = 37, 32
    draw = np.random.Generator(np.random.Philox(key=dims))
    expected = np.eye(dims)
    sylvester = np.array([[1.0]])
    while len(sylvester) < power:
        sylvester = np.block([[sylvester, sylvester], [sylvester, -sylvester]])
    sylvester /= power**0.5
    for _ in range(2):
        expected = expected * (draw.integers(0, 2, dims) * 2.0 - 1.0)
        expected[:, :power] = expected[:, :power] @ sylvester
        expected[:, dims - power :] = expected[:, dims - power :] @ sylvester
        expected = expected[:, draw.permutation(dims)]
    assert np.abs(rotate(torch.eye(dims), 1).numpy() - expected).max() < 1e-6


def test_an_unknown_codec_is_refused():
    with pytest.raises(UserError, match="fp32, bf16, int8, int4, sign"):
        make_codec("int3", ODD)


@pytest.mark.parametrize("name", ["int8", "int4", "sign"])
@pytest.mark.parametrize("rank", [None, 0])
def test_integer_products_are_those_of_the_decoded_rows(name, rank):
    """What splitting the queries into bytes costs is far below what the codec costs."""
    curvature = AutocorrelationSums(ODD)
    rows_ND = make_rows(ODD, 150)
    curvature.add(rows_ND)
    whitening = curvature.whitening(0.1)
    queries_QD = whitening.apply(unit_rows(make_rows(ODD, 20, rows_seed=9)))
    task = TaskCurvature.from_queries(whitening, make_rows(ODD, 20, rows_seed=9), 0.25)
    prepared = PreparedQueries(Scoring(), unit_rows(queries_QD), task.scaled_directions(rank), 1 / 0.75, 0.01, 0.25)
    codec = make_codec(name, ODD)
    unit_ND, norms = unit_rows(whitening.apply(rows_ND)), {"norm": torch.ones(150)}
    plain = make_codec("fp32", ODD)
    fields = codec.encode(unit_ND) | norms
    exact, whole = (BlockScorer(prepared, codec, integer=integer).scores(fields) for integer in (False, True))
    true = BlockScorer(prepared, plain).scores(plain.encode(unit_ND) | norms)
    assert float((whole - exact).square().mean().sqrt()) < 0.1 * float((exact - true).square().mean().sqrt())
    assert not torch.equal(exact, whole)


def test_modules_too_wide_for_whole_sums_are_scored_as_numbers():
    layout = RowLayout([("wide", 1, LARGEST + 1)])
    codec = make_codec("int8", layout)
    unit_ND = unit_rows(torch.randn(3, layout.dims, generator=torch.Generator().manual_seed(0)))
    fields = codec.encode(unit_ND) | {"norm": torch.ones(3)}
    prepared = PreparedQueries(Scoring(curvature="train"), unit_ND[:1].clone())
    assert (BlockScorer(prepared, codec).scores(fields)[:, 0] - unit_ND @ unit_ND[0]).abs().max() < 1e-3
