"""Triton kernels in Triton's interpreter; `test_triton_interpreter.py` runs this file in a process of its own.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted.py

The interpreter of Triton 3.9 is wrong about bf16: it truncates where hardware rounds, and `tl.dot` multiplies the raw
bits. The kernels use bf16 for products with signs, so both are corrected here; the correction has a test of its own.
"""

# ruff: noqa: E402
import os

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before Triton is imported"

from itertools import pairwise

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from headwater.kernels import Factored, gpu, reference, triton_factored, triton_full
from headwater.kernels.corrections import Layer
from headwater.kernels.triton_full import FullConfig, FullLayer

LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
SMALL = FullConfig(64, 64, 32)


def _widen(bits):
    return torch.from_numpy(np.ascontiguousarray(bits)).view(torch.bfloat16).float().numpy()


@pytest.fixture
def true_bf16(monkeypatch):
    builder = interpreter.InterpreterBuilder
    handle = interpreter.TensorHandle
    dot, cast = builder.create_dot, builder.cast_impl

    def rounded(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            values = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16()
            return handle(values.view(torch.uint16).numpy(), dst_type.scalar)
        return cast(self, src, dst_type)

    def multiplied(self, a, b, d, *rest):
        wide = [handle(_widen(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, d, *rest)

    monkeypatch.setattr(builder, "cast_impl", rounded)
    monkeypatch.setattr(builder, "create_fp_trunc", rounded)
    monkeypatch.setattr(builder, "create_dot", multiplied)


@triton.jit
def _bf16_probe(x_ptr, y_ptr, rounded_ptr, product_ptr):
    index = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    x = tl.load(x_ptr + index).to(tl.bfloat16)
    y = tl.load(y_ptr + index).to(tl.bfloat16)
    tl.store(rounded_ptr + index, x)
    tl.store(product_ptr + index, tl.dot(x, y))


def _probe():
    x, y = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    rounded, product = torch.empty(16, 16, dtype=torch.bfloat16), torch.empty(16, 16)
    _bf16_probe[(1,)](x, y, rounded, product)
    exact = x.bfloat16().double() @ y.bfloat16().double()
    return rounded, x.bfloat16(), product.double(), exact


def test_the_correction_of_bf16(true_bf16):
    rounded, expected, product, exact = _probe()
    assert torch.equal(rounded, expected)
    assert torch.allclose(product, exact, rtol=1e-5, atol=1e-5)


def test_bf16_is_wrong_without_the_correction():
    """When this fails the interpreter has been repaired, and the correction can go."""
    rounded, expected, product, exact = _probe()
    assert not torch.equal(rounded, expected)
    assert not torch.allclose(product, exact, rtol=0.1, atol=0.1)


def full_rows(case, config=SMALL, bounds=None):
    layer = FullLayer(case.left_Ok, case.right_Ik, case.correction.w_OI, case.a_TI.dtype)
    return layer.rows(case.delta_TO, case.a_TI, case.cu_seqlens if bounds is None else bounds, config)


def factored_rows(case, bounds=None):
    layer = Layer(case.left_Ok, case.right_Ik, case.correction)
    left = triton_factored.ThinFactor(layer.fold_left(), case.a_TI.dtype)
    right = triton_factored.ThinFactor(layer.fold_right(), case.a_TI.dtype)
    y_Tk, z_Tk = left.products(case.delta_TO), right.products(case.a_TI)
    bounds = case.cu_seqlens if bounds is None else bounds
    rows = triton_factored.segment_products(y_Tk, z_Tk, bounds, left.scale * right.scale)
    return rows[:, : case.left_Ok.shape[1], : case.right_Ik.shape[1]]


ROWS = {"full": full_rows, "factored": factored_rows, "none": factored_rows}


SIZES = [((77, 101), 8), ((77, 101), 64), ((130, 65), 16), ((130, 65), 32)]
CASES = [
    ("none", *SIZES[0]),
    *((kind, *size) for kind in ("full", "factored") for size in SIZES),
]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("kind", "shape", "k"), CASES)
def test_rows_equal_float64(true_bf16, batch, error, shape, k, kind, dtype):
    case = batch(*shape, k, kind, dtype)
    assert error(ROWS[kind](case), reference.project(*case.arguments)) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", ["full", "factored"])
def test_a_large_layer(true_bf16, batch, error, kind, dtype, monkeypatch):
    """In the tiling of the main kernel, with the outputs split over several programs."""
    monkeypatch.setattr(triton_full, "OUTPUTS_PER_PROGRAM", 512)
    monkeypatch.setitem(ROWS, "full", lambda case: full_rows(case, FullConfig()))
    case = batch(1376, 512, 16, kind, dtype, lengths=(1, 0, 70))
    assert error(ROWS[kind](case), reference.project(*case.arguments)) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_descriptors_give_the_bits_of_pointers(true_bf16, batch, error, dtype):
    case = batch(136, 72, 16, "full", dtype)
    descriptors = full_rows(case, FullConfig(32, 32, 16, descriptors=True))
    assert error(descriptors, reference.project(*case.arguments)) <= LIMITS[dtype]
    assert torch.equal(descriptors, full_rows(case, FullConfig(32, 32, 16)))


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("descriptors", [False, True])
def test_nan_and_neighbours_change_nothing(true_bf16, batch, kind, descriptors):
    """Alone equals packed, bit for bit; a segment of NaN poisons itself only; running twice gives the same bits."""
    if descriptors and kind != "full":
        pytest.skip("only the full kernel has descriptors")
    rows_of = (
        ROWS[kind] if kind != "full" else lambda case: full_rows(case, FullConfig(32, 32, 16, descriptors=descriptors))
    )
    case = batch(72, 40, 16, kind, torch.float16, lengths=(33, 0, 7, 18, 1))
    packed = rows_of(case)
    assert packed.isfinite().all()
    assert torch.equal(rows_of(case), packed)
    bounds = case.cu_seqlens
    for b, (first, last) in enumerate(pairwise(bounds.tolist())):
        alone = batch(72, 40, 16, kind, torch.float16, lengths=(last - first,), margin=0)
        alone.correction = case.correction
        alone.delta_TO, alone.a_TI = case.delta_TO[first:last].clone(), case.a_TI[first:last].clone()
        assert torch.equal(rows_of(alone)[0], packed[b])
    case.delta_TO[bounds[3] : bounds[4]] = case.a_TI[bounds[3] : bounds[4]] = float("nan")
    poisoned = rows_of(case)
    assert poisoned[3].isnan().all()
    assert torch.equal(poisoned[[0, 1, 2, 4]], packed[[0, 1, 2, 4]])


def test_results_are_written_everywhere(true_bf16, batch, monkeypatch):
    """Buffers start as NaN, so what a kernel leaves out shows."""
    empty = torch.Tensor.new_empty

    def poisoned(*args, **options):
        made = empty(*args, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    for kind, rows_of in ROWS.items():
        assert rows_of(batch(77, 101, 8, kind, lengths=(0, 33, 1))).isfinite().all()


@pytest.mark.parametrize("kind", ["full", "factored"])
def test_sides_wider_than_one_launch(true_bf16, batch, error, kind):
    case = batch(40, 33, 80, kind, torch.bfloat16, lengths=(7, 20))
    assert error(ROWS[kind](case), reference.project(*case.arguments)) <= 5e-3


@pytest.mark.parametrize("descriptors", [False, True])
def test_blocks_of_segments_give_the_same_bits(true_bf16, batch, monkeypatch, descriptors):
    """Memory is bounded by cutting the segments into blocks, with strips of the inputs beside one another."""
    case = batch(40, 72, 16, "full", torch.float16, lengths=(7, 0, 3, 18, 1, 2))
    config = FullConfig(32, 32, 16, descriptors=descriptors)
    whole = full_rows(case, config)
    monkeypatch.setattr(triton_full, "HALF_BYTES", 1)
    assert torch.equal(full_rows(case, config), whole)


@pytest.mark.parametrize("group", [1, 2, 4, 16])
def test_segments_in_groups_give_the_same_bits(true_bf16, batch, error, monkeypatch, group):
    """Whole groups and one that is not full, with several strips of the inputs."""
    case = batch(40, 72, 16, "full", lengths=(7, 0, 3, 18, 1, 2, 9, 5, 4))
    config = FullConfig(32, 32, 16)
    expected = full_rows(case, config)
    monkeypatch.setattr(triton_full, "GROUP", group)
    rows = full_rows(case, config)
    assert torch.equal(rows, expected)
    assert error(rows, reference.project(*case.arguments)) <= 1e-6


def test_tokens_past_the_end_are_never_read(true_bf16, batch):
    case = batch(77, 101, 8, "full", lengths=(33, 20), margin=0)
    beyond = torch.tensor([0, 33, 99], dtype=torch.int32)
    assert torch.equal(full_rows(case, bounds=beyond), full_rows(case))
    case = batch(77, 101, 8, "none", lengths=(33, 20), margin=0)
    assert torch.equal(factored_rows(case, bounds=beyond), factored_rows(case))


def test_a_wrong_kernel_fails_the_comparison(true_bf16, batch, error):
    case = batch(77, 101, 16, "full")
    expected = reference.project(*case.arguments)
    case.correction.w_OI[:, 64:] *= 1.001
    assert error(full_rows(case), expected) > 1e-5


def test_wide_factors_fit_into_float16(true_bf16, batch, error):
    """One over the root of a second moment can be 1e8, which float16 cannot hold."""
    case = batch(77, 101, 16, "factored", torch.float16)
    case.correction = Factored(case.correction.r_O * 1e6, case.correction.c_I * 1e-7)
    assert error(factored_rows(case), reference.project(*case.arguments)) <= 1e-3


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_layers_with_one_input_through_the_choice_of_kernels(true_bf16, batch, error, arch):
    """Aligned and odd layers, all corrections, factors that are shared and not."""
    kinds, outputs = ("none", "factored", "full", "full"), (40, 24, 32, 33)
    cases = [
        batch(width, 48, 16, kind, torch.bfloat16, lengths=(20, 0, 33))
        for width, kind in zip(outputs, kinds, strict=True)
    ]
    layers = [Layer(case.left_Ok, case.right_Ik, case.correction) for case in cases]
    group = gpu.Group(layers, torch.bfloat16, arch)
    rows = group.rows([case.delta_TO for case in cases], cases[0].a_TI, cases[0].cu_seqlens)
    for case, row in zip(cases, rows, strict=True):
        case.a_TI = cases[0].a_TI
        assert error(row, reference.project(*case.arguments)) <= 5e-3
