"""Packed batches to project, and the measure of an error."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from headwater.kernels import Correction, Factored, Full, signs

LENGTHS = (0, 1, 7, 33, 64, 250)


@dataclass
class Batch:
    """Arguments of `project`, with poison (NaN) before, behind and, if asked, between the segments."""

    delta_TO: Tensor
    a_TI: Tensor
    cu_seqlens: Tensor
    left_Ok: Tensor
    right_Ik: Tensor
    correction: Correction | None

    @property
    def arguments(self):
        return self.delta_TO, self.a_TI, self.cu_seqlens, self.left_Ok, self.right_Ik, self.correction


def make_correction(kind: str, outputs: int, inputs: int, generator: torch.Generator) -> Correction | None:
    """Factors over four orders of magnitude, as one over the root of a second moment has them."""

    def factors(*shape: int) -> Tensor:
        return 10 ** (torch.rand(*shape, generator=generator) * 4)

    match kind:
        case "none":
            return None
        case "full":
            return Full(factors(outputs, inputs))
        case "factored":
            return Factored(factors(outputs), factors(inputs))
    raise AssertionError(kind)


def make_batch(outputs, inputs, k, kind="none", dtype=torch.float32, lengths=LENGTHS, k_right=None, margin=3):
    generator = torch.Generator().manual_seed(outputs * 1009 + inputs)
    tokens = sum(lengths) + 2 * margin
    delta_TO = torch.randn(tokens, outputs, generator=generator)
    a_TI = torch.randn(tokens, inputs, generator=generator)
    for tensor in (delta_TO, a_TI):
        tensor[:margin] = tensor[tokens - margin :] = float("nan")
    bounds = torch.tensor([margin, *lengths]).cumsum(0).to(torch.int32)
    left_Ok = signs(0, "output", outputs, k)
    right_Ik = signs(0, "input", inputs, k_right or k)
    correction = make_correction(kind, outputs, inputs, generator)
    return Batch(delta_TO.to(dtype), a_TI.to(dtype), bounds, left_Ok, right_Ik, correction)


def rms_ratio(rows: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected; no single segment may be twice as far off."""
    assert rows.shape == expected.shape
    error_B = (rows.double() - expected.double()).flatten(1).norm(dim=1)
    size_B = expected.double().flatten(1).norm(dim=1)
    assert torch.all(error_B[size_B == 0] == 0), "an empty segment's row must be zero"
    worst = (error_B[size_B > 0] / size_B[size_B > 0]).max()
    return max(error_B.norm() / size_B.norm(), worst / 2).item()


@pytest.fixture
def batch():
    return make_batch


@pytest.fixture
def error():
    return rms_ratio
