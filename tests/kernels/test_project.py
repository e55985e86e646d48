"""The projection on a CPU against float64, and what must not change a row's bits."""

from itertools import pairwise

import pytest
import torch

from headwater.kernels import Factored, Full, Projector, SharedProjector, cpu, project, project_shared, reference, signs

SHAPES = [(77, 101), (130, 65), (1376, 512)]
CORRECTIONS = ["none", "full", "factored"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def limit(dtype: torch.dtype, kind: str) -> float:
    """A factor makes other numbers of an input than bf16 has: they are rounded to it, where it is the input's type."""
    return 5e-3 if (dtype, kind) == (torch.bfloat16, "factored") else 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CORRECTIONS)
@pytest.mark.parametrize("k", [8, 16, 32, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_equal_float64(batch, error, shape, k, kind, dtype):
    case = batch(*shape, k, kind, dtype)
    rows = project(*case.arguments)
    assert rows.dtype == torch.float32
    assert error(rows, reference.project(*case.arguments)) <= limit(dtype, kind)


@pytest.mark.parametrize("sides", [(16, 48), (48, 16), (5, 3)])
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_the_two_sides_may_differ(batch, error, kind, sides):
    case = batch(130, 65, sides[0], kind, k_right=sides[1])
    assert error(project(*case.arguments), reference.project(*case.arguments)) <= 1e-6


def transposed(delta_TO, a_TI, cu_seqlens, left_Ok, right_Ik, correction):
    turned = correction and Full(correction.w_OI.T.reshape(correction.w_OI.shape))
    return project(delta_TO, a_TI, cu_seqlens, left_Ok, right_Ik, turned)


def one_token_short(delta_TO, a_TI, cu_seqlens, *factors):
    shorter = cu_seqlens.clone()
    shorter[-1] -= 1
    return project(delta_TO, a_TI, shorter, *factors)


def one_sign_wrong(delta_TO, a_TI, cu_seqlens, left_Ok, right_Ik, correction):
    wrong = left_Ok.clone()
    wrong[-1, -1] *= -1
    return project(delta_TO, a_TI, cu_seqlens, wrong, right_Ik, correction)


@pytest.mark.parametrize("wrong", [transposed, one_token_short, one_sign_wrong])
def test_a_wrong_kernel_fails_the_comparison(batch, error, wrong):
    case = batch(1376, 512, 64, "full")
    assert error(wrong(*case.arguments), reference.project(*case.arguments)) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CORRECTIONS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "k"),
    [((77, 101), 8), ((256, 688), 16), ((1376, 512), 32), ((130, 65), 5)],
)
def test_alone_equals_packed_bit_for_bit(batch, shape, k, kind, dtype, threads):
    """Through lengths all different, all equal, in another order, and one by one."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for lengths in ((0, 1, 7, 33, 64, 250), (64, 64, 64), (40, 40), (300, 2, 129)):
            case = batch(*shape, k, kind, dtype, lengths=lengths)
            projector = Projector(*case.arguments[3:])
            packed = projector.rows(*case.arguments[:3])
            assert torch.equal(projector.rows(*case.arguments[:3]), packed), "running twice"
            bounds = case.cu_seqlens.tolist()
            for b, (first, last) in enumerate(pairwise(bounds)):
                alone = projector.rows(
                    case.delta_TO[first:last].clone(), case.a_TI[first:last].clone(), [0, last - first]
                )
                assert torch.equal(alone[0], packed[b]), f"segment {b} of {lengths}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CORRECTIONS)
@pytest.mark.parametrize("lengths", [(0, 1, 7, 33, 64, 250), (64, 64, 64, 64)])
def test_nan_stays_in_its_segment(batch, kind, dtype, lengths):
    case = batch(77, 101, 16, kind, dtype, lengths=lengths)
    clean = project(*case.arguments)
    assert clean.isfinite().all(), "the margins around the segments are NaN"
    poisoned = 3
    first, last = case.cu_seqlens[poisoned], case.cu_seqlens[poisoned + 1]
    case.delta_TO[first:last] = case.a_TI[first:last] = float("nan")
    rows = project(*case.arguments)
    assert rows[poisoned].isnan().all()
    for b in range(len(lengths)):
        assert b == poisoned or torch.equal(rows[b], clean[b])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kinds", [("none", "none", "none"), ("factored",) * 3, ("full",) * 3, ("full", "none", "factored")]
)
def test_shared_input_gives_the_rows_of_each_layer(batch, error, kinds, dtype):
    cases = [batch(outputs, 96, 16, kind, dtype) for outputs, kind in zip((96, 32, 33), kinds, strict=True)]
    for case in cases:
        case.a_TI = cases[0].a_TI
    deltas = [case.delta_TO for case in cases]
    lefts, rights, corrections = zip(*(case.arguments[3:] for case in cases), strict=True)
    for rights_given in (rights, [rights[0]] * 3):
        shared = project_shared(deltas, cases[0].a_TI, cases[0].cu_seqlens, lefts, rights_given, corrections)
        for rows, case, kind in zip(shared, cases, kinds, strict=True):
            assert error(rows, reference.project(*case.arguments)) <= limit(dtype, kind)


def test_one_right_side_is_multiplied_once(batch, monkeypatch):
    """Layers that share input and sign matrix: one thin product for the input, one for each layer's output."""
    case = batch(32, 48, 8)
    seen = []
    product = cpu.product
    monkeypatch.setattr(cpu, "product", lambda x, factor: seen.append(x.shape) or product(x, factor))
    shared = SharedProjector([case.left_Ok] * 3, [case.right_Ik] * 3)
    shared.rows([case.delta_TO[:64]] * 3, case.a_TI[:64], [0, 64])
    assert sorted(seen) == [(64, 32)] * 3 + [(64, 48)]


def test_columns_of_a_wider_tensor_are_accepted(batch):
    """Gate and up come as halves of one gradient: rows further apart than they are long."""
    case = batch(77, 101, 16, "full")
    wide = torch.cat([case.delta_TO, case.delta_TO], dim=1)
    for kind in (case.correction, None):
        halves = [
            project(half, case.a_TI, case.cu_seqlens, case.left_Ok, case.right_Ik, kind) for half in wide.chunk(2, 1)
        ]
        assert torch.equal(*halves)
        assert torch.allclose(halves[0], project(*case.arguments[:5], kind), rtol=1e-4, atol=1e-2)


def test_precision_setting_of_the_process_costs_no_precision(batch, error):
    """On a CPU with AMX `torch.matmul` rounds to bf16 then."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for kind in CORRECTIONS:
            case = batch(130, 65, 16, kind)
            assert error(project(*case.arguments), reference.project(*case.arguments)) <= 1e-6
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_inputs_that_carry_gradients_are_read_without_recording(batch):
    case = batch(77, 101, 8, "full")
    case.delta_TO.requires_grad_()
    case.a_TI.requires_grad_()
    assert not project(*case.arguments).requires_grad


def test_no_segments_and_no_tokens(batch):
    case = batch(77, 101, 8)
    assert project(case.delta_TO, case.a_TI, [5], case.left_Ok, case.right_Ik).shape == (0, 8, 8)
    for kind in (None, Full(torch.ones(77, 101)), Factored(torch.ones(77), torch.ones(101))):
        rows = project(case.delta_TO, case.a_TI, [4, 4, 4], case.left_Ok, case.right_Ik, kind)
        assert torch.equal(rows, torch.zeros(2, 8, 8))


def test_bad_arguments_are_named(batch):
    case = batch(77, 101, 8)
    delta_TO, a_TI, cu, left_Ok, right_Ik, _ = case.arguments
    bad = [
        ((delta_TO.T, a_TI, cu, left_Ok, right_Ik), "delta must be"),
        ((delta_TO, a_TI[:, :-1], cu, left_Ok, right_Ik), "a must be"),
        ((delta_TO.double(), a_TI.double(), cu, left_Ok, right_Ik), "a must be one of"),
        ((delta_TO.half(), a_TI, cu, left_Ok, right_Ik), "one type"),
        ((delta_TO, a_TI, [0, 5, 3], left_Ok, right_Ik), "cu_seqlens must rise"),
        ((delta_TO, a_TI, [0, len(a_TI) + 1], left_Ok, right_Ik), "cu_seqlens must rise"),
        ((delta_TO, a_TI, [-1, 4], left_Ok, right_Ik), "cu_seqlens must rise"),
        ((delta_TO, a_TI, cu, left_Ok[0], right_Ik), "left must be"),
        ((delta_TO, a_TI, cu, left_Ok, right_Ik, Full(torch.ones(101, 77))), r"Full: w_OI must be \[77, 101\]"),
        ((delta_TO, a_TI, cu, left_Ok, right_Ik, Factored(torch.ones(101), torch.ones(77))), "Factored: r_O must be"),
        ((delta_TO, a_TI, cu, left_Ok, right_Ik, torch.ones(77, 101)), "a correction is None"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            project(*arguments)
    with pytest.raises(ValueError, match="one per layer"):
        SharedProjector([left_Ok, left_Ok], [right_Ik])
    with pytest.raises(ValueError, match="deltas for 1"):
        SharedProjector([left_Ok] * 2, [right_Ik] * 2).rows([delta_TO], a_TI, cu)
    with pytest.raises(ValueError, match="one height"):
        SharedProjector([left_Ok] * 2, [right_Ik, signs(0, "x", 5, 8)])
