"""What must hold on a GPU, as functions of a device: called with a real one by `test_gpu.py` (`make test-gpu`), and
with the pretended one by `tests/device/test_gpu_checks.py`, so that they run wherever the other tests do.

`small` shrinks what twins of the kernels in plain torch would take long for; it changes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.attribution.models.base import Example, fused_norm
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector, collect
from headwater.attribution.settings import ProjectionSettings, TracedModelSettings
from headwater.kernels import Correction, Full, project, reference
from headwater.kernels.triton_full import FullConfig, FullLayer
from headwater.train import parallel
from headwater.train.attention import Segments, attend_padded, attend_varlen
from headwater.train.losses import head_loss

from ..kernels.conftest import Batch, make_batch, rms_ratio

LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Greatest error of rows against float64, by the inputs' type: those of the kernels' own README."""
KINDS = ("none", "factored", "full")
SIZES = [(77, 101, 8), (130, 65, 64), (136, 72, 32), (1376, 512, 16), (40, 33, 80)]
"""O, I, k: odd and aligned, wider than one program, more columns than one launch takes."""


def moved(correction: Correction | None, device: torch.device) -> Correction | None:
    if correction is None:
        return None
    fields = (getattr(correction, name).to(device) for name in correction.__dataclass_fields__)
    return type(correction)(*fields)


def rows_of(case: Batch, device: torch.device) -> Tensor:
    """A batch's rows, made on the device."""
    bounds, left, right = (x.to(device) for x in (case.cu_seqlens, case.left_Ok, case.right_Ik))
    rows = project(case.delta_TO.to(device), case.a_TI.to(device), bounds, left, right, moved(case.correction, device))
    assert rows.device == device
    return rows.cpu()


def rows_equal_float64(device: torch.device, kind: str, size: tuple[int, int, int], dtype: torch.dtype) -> float:
    """The error; poison lies before and behind the segments."""
    case = make_batch(*size, kind, dtype)
    error = rms_ratio(rows_of(case, device), reference.project(*case.arguments))
    assert error <= LIMITS[dtype], f"{error:.2g}, at most {LIMITS[dtype]:.2g}"
    return error


def a_wrong_row_is_noticed(device: torch.device) -> None:
    """The negative control."""
    case = make_batch(77, 101, 16, "full")
    expected = reference.project(*case.arguments)
    assert isinstance(case.correction, Full)
    case.correction.w_OI[:, 64:] *= 1.001
    assert rms_ratio(rows_of(case, device), expected) > 1e-5


def alone_equals_packed(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    """Bit for bit; a segment of NaN poisons itself alone; twice gives the same bits."""
    case = make_batch(136, 72, 16, kind, dtype, lengths=(33, 0, 7, 130, 1))
    packed = rows_of(case, device)
    assert packed.isfinite().all()
    assert torch.equal(rows_of(case, device), packed)
    bounds = case.cu_seqlens
    for b, (first, last) in enumerate(pairwise(bounds.tolist())):
        alone = make_batch(136, 72, 16, kind, dtype, lengths=(last - first,), margin=0)
        alone.correction = case.correction
        alone.delta_TO, alone.a_TI = case.delta_TO[first:last].clone(), case.a_TI[first:last].clone()
        assert torch.equal(rows_of(alone, device)[0], packed[b])
    case.delta_TO[bounds[3] : bounds[4]] = float("nan")
    poisoned = rows_of(case, device)
    assert poisoned[3].isnan().all()
    assert torch.equal(poisoned[[0, 1, 2, 4]], packed[[0, 1, 2, 4]])


def descriptors_equal_pointers(device: torch.device, dtype: torch.dtype) -> None:
    """The same sums in the same order, whichever way tiles are loaded."""
    case = make_batch(136, 72, 16, "full", dtype, margin=8)
    assert isinstance(case.correction, Full)
    layer = FullLayer(case.left_Ok.to(device), case.right_Ik.to(device), case.correction.w_OI.to(device), dtype)
    arguments = [x.to(device) for x in (case.delta_TO, case.a_TI, case.cu_seqlens)]
    both = [layer.rows(*arguments, FullConfig(64, 64, 32, descriptors=d)).cpu() for d in (False, True)]
    assert torch.equal(*both)


def a_segment_for_each_token(device: torch.device, kind: str, small: bool) -> None:
    """More segments than the second axis of a grid takes; rows of single tokens add up to the segment's."""
    tokens = 300 if small else 70_000
    case = make_batch(40, 24, 8, kind, lengths=(tokens,), margin=0)
    (whole,) = rows_of(case, device)
    case.cu_seqlens = torch.arange(tokens + 1, dtype=torch.int32)
    assert rms_ratio(rows_of(case, device).double().sum(0)[None], whole[None]) <= 1e-4


def rows_in_another_thread(device: torch.device) -> None:
    """As autograd's: Triton's memory for descriptors is asked for thread by thread."""
    case = make_batch(136, 72, 16, "full", torch.bfloat16)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(rows_of, case, device).result()
    assert torch.equal(other, rows_of(case, device))


def varlen_equals_padded(device: torch.device, dtype: torch.dtype) -> float:
    """Attention within segments, forward and backward, against the padded one in float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 64, 1, 130])
    segments = Segments.from_lengths(lengths)
    given = [torch.randn(int(lengths.sum()), heads, 32, generator=generator).to(dtype) for heads in (4, 2, 2)]
    pull = torch.randn(int(lengths.sum()), 128, generator=generator)
    there = Segments(**{n: x.to(device) if isinstance(x, Tensor) else x for n, x in vars(segments).items()})

    def run(attend: Callable[..., Tensor], inputs: list[Tensor], where: Segments, weight: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = attend(*leaves, where)
        (out.float() * weight).sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    got = run(attend_varlen, [x.to(device) for x in given], there, pull.to(device))
    expected = run(attend_padded, [x.float() for x in given], segments, pull)
    worst = max(relative(one.cpu(), other) for one, other in zip(got, expected, strict=True))
    assert worst <= 2e-2, f"{worst:.2g}"
    return worst


def loss_equals_float64(device: torch.device, kind: str, check: Callable[..., None]) -> None:
    """`check` compares with the definitions (tests/train/test_losses.py)."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 33, generator=generator).to(device) for n in (130, 101))
    labels = torch.randint(101, (130,), generator=generator).to(device)
    weights = (torch.rand(130, generator=generator) + 0.1).to(device)
    check(hidden, weight, labels, weights, kind, 1e-5)
    assert head_loss(hidden, weight, labels, weights, kind=kind)[0].device == device


def fused_norm_is_the_layers(device: torch.device, layer: Callable[..., nn.Module], normalization: str) -> float:
    """What a fused layer multiplies its weight with is what `fused_norm` says: the outputs agree.

    Args:
        layer: Transformer Engine's `LayerNormLinear`, or one with its arguments and attributes.
    """
    worst = 0.0
    for centred in (False, True):
        module: Any = layer(64, 48, eps=1e-5, bias=False, normalization=normalization, zero_centered_gamma=centred).to(
            device
        )
        with torch.no_grad():
            module.layer_norm_weight.copy_(torch.linspace(-0.5, 1.5, 64).to(device))
            given = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)).to(device)
            got, expected = module(given), fused_norm(module, given) @ module.weight.t()
        worst = max(worst, relative(got.cpu(), expected.cpu()))
    assert worst <= 5e-3, f"{worst:.2g}"
    return worst


def rows_equal_the_cpus(device: torch.device, run: Path, expected: Tensor, precision: str) -> float:
    """Rows of passages of a model on the device against rows made on the CPU in float32; returns how far apart."""
    got = model_rows(run, precision)
    assert got.device.type == "cpu"
    apart = relative(got, expected)
    assert apart <= (1e-3 if precision == "fp32" else 0.1), f"{apart:.2g}"
    return apart


def model_rows(run: Path, precision: str) -> Tensor:
    """Rows of some passages at the newest checkpoint of a run."""
    draw = np.random.default_rng(0)
    examples = [Example(draw.integers(1, 250, size=length)) for length in (5, 40, 17, 90)]
    world = parallel.start(threads=1)
    try:
        model = open_model(TracedModelSettings(run=str(run), precision=precision), world)
        collector = GradientCollector(model, ProjectionSettings(dims=16), "adam", "log_odds")
        return collect(collector, examples, 128)
    finally:
        parallel.stop()


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
