"""The checks of the GPU suite (`tests/gpu`), rehearsed on the pretended device."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headwater.attribution.models.base import fused_norm
from headwater.train.losses import LOSSES

from ..gpu import checks
from ..train.test_losses import check
from .pretended import Pretended, here
from .rehearsed import rehearsal

TYPES = list(checks.LIMITS)


@pytest.mark.parametrize(
    ("kind", "size", "dtype"), itertools.product(checks.KINDS, checks.SIZES, TYPES), ids=lambda value: str(value)
)
def test_rows(device: Pretended, kind: str, size: Any, dtype: torch.dtype) -> None:
    checks.rows_equal_float64(here(), kind, size, dtype)


@pytest.mark.parametrize(("kind", "dtype"), itertools.product(checks.KINDS, TYPES), ids=lambda value: str(value))
def test_neighbours(device: Pretended, kind: str, dtype: torch.dtype) -> None:
    checks.alone_equals_packed(here(), kind, dtype)


def test_kernels(device: Pretended) -> None:
    checks.a_wrong_row_is_noticed(here())
    for dtype in (torch.float16, torch.bfloat16):
        checks.descriptors_equal_pointers(here(), dtype)
        checks.varlen_equals_padded(here(), dtype)
    for kind in checks.KINDS:
        checks.a_segment_for_each_token(here(), kind, small=True)
    checks.rows_in_another_thread(here())


@pytest.mark.parametrize("kind", LOSSES)
def test_losses(device: Pretended, kind: str) -> None:
    checks.loss_equals_float64(here(), kind, check)


class Fused(nn.Module):
    """The arguments and attributes of Transformer Engine's `LayerNormLinear`."""

    def __init__(self, inputs: int, outputs: int, *, eps: float, bias: bool, normalization: str, **more: Any) -> None:
        super().__init__()
        self.eps, self.normalization = eps, normalization
        self.zero_centered_gamma = more["zero_centered_gamma"]
        self.layer_norm_weight = nn.Parameter(torch.ones(inputs))
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return fused_norm(self, x) @ self.weight.t()


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_the_fused_norm(device: Pretended, normalization: str) -> None:
    checks.fused_norm_is_the_layers(here(), Fused, normalization)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model(tiny_run: Path, precision: str) -> None:
    expected = checks.model_rows(tiny_run, "fp32")
    with rehearsal():
        checks.rows_equal_the_cpus(here(), tiny_run, expected, precision)


def test_every_check_is_rehearsed() -> None:
    """None of them is dead text until somebody has a GPU."""
    mine = Path(__file__).read_text()
    suite = Path(checks.__file__).with_name("test_gpu.py").read_text()
    named = [
        name
        for name, function in vars(checks).items()
        if inspect.isfunction(function) and function.__module__ == checks.__name__ and function.__doc__
    ]
    assert len(named) > 8
    for name in set(named) - {"rows_of", "moved"}:
        assert f"checks.{name}(" in mine, name
        assert f"{name}(" in suite, name
