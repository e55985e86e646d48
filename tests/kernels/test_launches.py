"""How the Triton kernels are launched: grids that a GPU takes, memory that is bounded, descriptors in every thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from headwater.kernels import reference, triton_factored, triton_full
from headwater.kernels.corrections import Layer
from headwater.kernels.gpu import Group
from headwater.kernels.triton_full import FullConfig, FullLayer, allocate_descriptors

from .emulated import Launched, emulate

MANY = 70_000
"""More than the second and third axis of a grid take."""


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> dict[str, Launched]:
    """Kernels that are launched and do nothing."""
    twins = emulate(monkeypatch)
    for each in twins.values():
        each.compute = lambda *_, **__: None
    return twins


@pytest.mark.parametrize("kind", ["full", "factored"])
def test_more_segments_than_an_axis_takes(batch: Any, idle: dict[str, Launched], kind: str) -> None:
    case = batch(33, 20, 16, kind, lengths=(2, 3))
    bounds = torch.arange(MANY + 1, dtype=torch.int32).clamp_max(5)
    group = Group([Layer(case.left_Ok, case.right_Ik, case.correction)], torch.float32, "sm_90")
    (rows,) = group.rows([case.delta_TO], case.a_TI, bounds)
    assert rows.shape == (MANY, 16, 16)
    launched = [grid for twin in idle.values() for grid in twin.grids]
    assert max(grid[0] for grid in launched) >= MANY


def test_more_tokens_than_an_axis_takes(idle: dict[str, Launched]) -> None:
    tokens = 65_536 * triton_factored.THIN["TOKENS"]
    x_TK = torch.empty(1, 3, dtype=torch.bfloat16).expand(tokens, 3)
    triton_factored.ThinFactor(torch.ones(3, 80), torch.bfloat16).products(x_TK)
    assert idle["thin"].grids == [(65_536 * 2,)]


def test_a_grid_that_no_gpu_takes_fails(idle: dict[str, Launched]) -> None:
    with pytest.raises(AssertionError, match="no GPU"):
        idle["full"][(1, MANY)]


@pytest.mark.parametrize("lengths", [(2,) * 23, (0, 5, 1, 9, 0, 30), ()])
def test_memory_is_bounded_by_blocks_of_segments(
    batch: Any, error: Any, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    """The same bits in blocks as whole."""
    emulate(monkeypatch)
    case = batch(33, 20, 80, "full", lengths=lengths)
    layer = FullLayer(case.left_Ok, case.right_Ik, case.correction.w_OI, torch.float32)
    arguments = (case.delta_TO, case.a_TI, case.cu_seqlens, FullConfig(32, 32, 16))
    whole = layer.rows(*arguments)
    made: list[int] = []
    half = FullLayer._half
    monkeypatch.setattr(triton_full, "HALF_BYTES", 1)
    monkeypatch.setattr(FullLayer, "_half", lambda *given: made.append(len(given[3]) - 1) or half(*given))
    blocks = layer.rows(*arguments)
    assert torch.equal(blocks, whole)
    assert max(made, default=0) <= 4
    assert sum(made) == 2 * len(lengths)
    if lengths:
        assert error(blocks, reference.project(*case.arguments)) <= 1e-6


def test_descriptors_are_made_in_every_thread() -> None:
    """Autograd runs hooks of a GPU's backward pass in a thread of its own."""
    from triton.runtime._allocation import NullAllocator, _allocator

    def launch() -> Any:
        before = _allocator.get()
        allocate_descriptors(torch.device("cpu"))
        return before, _allocator.get()(128, 16, None)

    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            before, made = pool.submit(launch).result()
        assert isinstance(before, NullAllocator)
        assert made.numel() == 128
