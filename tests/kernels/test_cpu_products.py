"""The compiled thin products against float64, and that an entry's bits are its own."""

import os
from functools import cache

import pytest
import torch
from llvmlite import binding

from headwater.kernels import cpu_code
from headwater.kernels import cpu_products as products


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [16, 32, 48, 80])
@pytest.mark.parametrize("steps", [1, 15, 16, 255, 257, 1000])
@pytest.mark.parametrize("tokens", [1, 3, 8, 77])
def test_product_equals_float64(error, tokens, steps, columns, dtype):
    x_TK, factor_Kk = draw(tokens, steps).to(dtype), draw(steps, columns).to(dtype)
    result_Tk = products.product(x_TK, products.pack(factor_Kk, dtype))
    assert error(result_Tk, x_TK.double() @ factor_Kk.double()) <= 4e-7


def test_a_cpu_without_bf16_products_widens(error, monkeypatch):
    monkeypatch.setattr(cpu_code, "has", lambda feature: False)
    x_TK, factor_Kk = draw(77, 101).bfloat16(), draw(101, 32).bfloat16()
    packed = products.pack(factor_Kk, torch.bfloat16)
    assert packed.dtype == torch.float32
    assert error(products.product(x_TK, packed), x_TK.double() @ factor_Kk.double()) <= 4e-7


def test_rounding_does_not_grow_with_the_sum(error):
    x_TK, factor_Kk = draw(8, 1 << 16), draw(1 << 16, 16)
    assert error(products.product(x_TK, factor_Kk), x_TK.double() @ factor_Kk.double()) <= 1e-6


@pytest.mark.parametrize("kO", [5, 16, 32])
@pytest.mark.parametrize("kI", [16, 32, 48])
def test_segment_products_equal_float64(error, kO, kI):
    y_Tk, z_Tk = draw(400, kO + 3)[:, 3:], draw(400, kI + 1)[:, 1:]
    bounds = [2, 2, 3, 10, 43, 107, 400]
    rows_Bkk = products.segment_products(y_Tk, z_Tk, bounds)
    for b, row_kk in enumerate(rows_Bkk):
        segment = slice(bounds[b], bounds[b + 1])
        expected_kk = y_Tk[segment].double().T @ z_Tk[segment].double()
        assert torch.equal(row_kk, torch.zeros(kO, kI)) if b == 0 else error(row_kk, expected_kk) <= 4e-7


@pytest.mark.parametrize("sizes", [(77, 101, 16), (8, 32, 32), (300, 33, 48), (9, 400, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weighted_gradients_equal_float64(error, monkeypatch, sizes, dtype):
    """Also in many pieces, and in threads; outputs behind the last are zero."""
    outputs, inputs, k = sizes
    delta_TO, a_TI = draw(400, outputs + 5)[:, 5:].to(dtype), draw(400, inputs + 1)[:, 1:].to(dtype)
    w_OI, right_Ik = draw(outputs, inputs).abs() + 0.1, draw(inputs, k)
    bounds = [2, 2, 3, 10, 43, 107, 400]
    w_tiles = products.tiles(w_OI)
    padded_Ik = torch.zeros(w_tiles.shape[0] * w_tiles.shape[3], k)
    padded_Ik[:inputs] = right_Ik
    given = (delta_TO, a_TI, w_tiles, padded_Ik, bounds)
    half_BOk = products.weighted_gradients(*given)
    for b, half_Ok in enumerate(half_BOk):
        segment = slice(bounds[b], bounds[b + 1])
        gradient_OI = delta_TO[segment].double().T @ a_TI[segment].double()
        expected_Ok = (gradient_OI * w_OI.double()) @ right_Ik.double()
        assert not half_Ok[outputs:].any()
        assert not half_Ok.any() if b == 0 else error(half_Ok[:outputs], expected_Ok) <= 5e-7
    monkeypatch.setattr(products, "PACKED", 1)
    assert torch.equal(products.weighted_gradients(*given), half_BOk)
    monkeypatch.setattr(products, "THREAD_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(products.weighted_gradients(*given), half_BOk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_may_be_apart_and_turned(dtype):
    wide_TK, factor_Kk = draw(77, 300).to(dtype), products.pack(draw(200, 32), dtype)
    expected_Tk = products.product(wide_TK[:, 50:250].contiguous(), factor_Kk)
    assert torch.equal(products.product(wide_TK[:, 50:250], factor_Kk), expected_Tk)
    assert torch.equal(products.product(wide_TK[:, 50:250].T.contiguous().T, factor_Kk), expected_Tk)
    assert not torch.equal(products.product(wide_TK[:, 51:251], factor_Kk), expected_Tk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_its_own_row_decides_on_an_entry(monkeypatch, dtype):
    """Not the rows beside it, nor threads, nor how many columns fit into the registers."""
    x_TK, factor_Kk = draw(91, 513).to(dtype), products.pack(draw(513, 48), dtype)
    bounds = [0, 1, 40, 91]
    expected_Tk = products.product(x_TK, factor_Kk)
    rows_Bkk = products.segment_products(expected_Tk, expected_Tk, bounds)
    assert torch.equal(torch.cat([products.product(row_K[None], factor_Kk) for row_K in x_TK]), expected_Tk)
    assert torch.equal(products.segment_products(expected_Tk[40:], expected_Tk[40:], [0, 51])[0], rows_Bkk[2])
    poisoned_TK = x_TK.clone()
    poisoned_TK[4] = float("nan")
    others = torch.arange(91) != 4
    assert torch.equal(products.product(poisoned_TK, factor_Kk)[others], expected_Tk[others])
    monkeypatch.setattr(products, "THREAD_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(cpu_code, "compiled", cache(cpu_code.compiled.__wrapped__))
    for tile in ((4, 16), (8, 32), (2, 48)):
        monkeypatch.setattr(cpu_code, "tile", lambda tile=tile: tile)
        cpu_code.compiled.cache_clear()
        assert torch.equal(products.product(x_TK, factor_Kk), expected_Tk)
        assert torch.equal(products.segment_products(expected_Tk, expected_Tk, bounds), rows_Bkk)


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    """A child has none of its parent's threads: work given to these would never be done."""
    monkeypatch.setattr(products, "THREAD_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x_TK, factor_Kk = draw(64, 64), draw(64, 16)
    expected_Tk = products.product(x_TK, factor_Kk)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(products.product(x_TK, factor_Kk), expected_Tk) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("triple", "cpu", "instruction"),
    [("x86_64-linux-gnu", "haswell", "vfmadd231ps"), ("aarch64-linux-gnu", "neoverse-n1", "fmla")],
)
def test_the_code_compiles_for_other_cpus(monkeypatch, triple, cpu, instruction):
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu, "", opt=3)
    monkeypatch.setattr(cpu_code, "has", lambda feature: False)
    monkeypatch.setattr(cpu_code, "tile", cpu_code.tile.__wrapped__)
    _, width = cpu_code.tile()
    for name in ("product", "segments", "gradient"):
        assembly = machine.emit_assembly(binding.parse_assembly(cpu_code.generate(name, width, torch.float32)))
        assert instruction in assembly
        assert "zmm" not in assembly
