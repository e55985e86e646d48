"""The pretended device refuses what a GPU would, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from headwater.configs.errors import UserError
from headwater.kernels.corrections import Layer
from headwater.kernels.cpu import Group
from headwater.train import parallel

from .pretended import Mixed, Pretended, here


def there(*shape: int) -> Tensor:
    return torch.ones(*shape, device=here())


MIXED: dict[str, Callable[[], object]] = {
    "a sum": lambda: there(3) + torch.ones(3),
    "a product": lambda: there(2, 3) @ torch.ones(3, 2),
    "an output": lambda: torch.mm(there(2, 2), there(2, 2), out=torch.empty(2, 2)),
    "one of several": lambda: torch.cat([there(1), torch.ones(1)]),
    "numbers among several": lambda: torch.stack([there(1)[0], torch.ones(())]),
    "in place": lambda: torch.ones(3).add_(there(3)),
    "a place of the CPU's": lambda: torch.ones(3)[there(1).long()],
    "a value that is set": lambda: (
        there(3).__setitem__(slice(1, None), 0) or there(3).index_put_((torch.tensor([0, 1]),), torch.ones(2))
    ),
    "a layer": lambda: nn.Linear(3, 2).to(here())(torch.ones(3)),
    "an array": lambda: there(3).numpy(),
    "a draw": lambda: torch.randn(3, device=here(), generator=torch.Generator()),
    "a draw in place": lambda: there(3).normal_(generator=torch.Generator()),
    "oneDNN": lambda: torch.ops.mkldnn._linear_pointwise(there(2, 3), there(2, 3), None, "none", [], ""),
    "our own code for a CPU": lambda: Group([Layer(there(4, 2), there(3, 2), None)], torch.float32).rows(
        [there(5, 4)], there(5, 3), [0, 5]
    ),
    "memory to be pinned": lambda: there(3).pin_memory(),
}


@pytest.mark.parametrize("what", MIXED)
def test_mixtures_are_refused(device: Pretended, what: str) -> None:
    with pytest.raises(Mixed):
        MIXED[what]()


def test_in_a_backward_pass(device: Pretended) -> None:
    x = there(3).requires_grad_()
    y = x.exp()
    y.register_hook(lambda gradient: gradient * torch.ones(3))
    with pytest.raises(Mixed):
        y.sum().backward()


def test_in_a_thread(device: Pretended) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(Mixed):
        pool.submit(lambda: there(3) + torch.ones(3)).result()


def test_what_is_made_of_it_is_its(device: Pretended) -> None:
    x = there(4)
    made = [x + 1, x[1:], torch.zeros_like(x), x.new_zeros(2), torch.as_tensor(x), x.half(), x.unbind()[0]]
    made += [torch.where(x > 0, x, 0.0), torch.stack([x, x]), torch.tensor([1.0], device=x.device), *x.split(2)]
    assert all(each.device == here() and each.is_cuda for each in made)
    left = [x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), torch.ones(3), x.cpu() * 2]
    assert all(each.device.type == "cpu" for each in left)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 1)).to(here())
    model(there(5, 3)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.device == here() for parameter in model.parameters())


def test_gradients_cross_over(device: Pretended) -> None:
    x = torch.ones(3, requires_grad=True)
    (x.to(here()) * there(3)).sum().cpu().backward()
    assert x.grad is not None
    assert x.grad.device.type == "cpu"


def test_numbers_and_what_is_copied_may_be_mixed(device: Pretended) -> None:
    x = there(3)
    x += torch.tensor(2.0)
    x.copy_(torch.zeros(3))
    x[torch.tensor([0, 2])] = 1.0
    assert x.tolist() == [1, 0, 1]


def test_waits_and_copies_are_counted(device: Pretended) -> None:
    x = there(3)
    device.forget()
    x[x > 0]
    x.nonzero()
    assert float(x[0]) == 1
    assert device.waits == ["a mask as an index", "aten::nonzero", "aten::_local_scalar_dense"]
    x[x > 0] = 2.0
    x.masked_fill(x > 0, 3.0)
    assert len(device.waits) == 3
    torch.ones(2).to(here())
    torch.ones(2).pin_memory().to(here(), non_blocking=True)
    x.cpu()
    assert (device.to_device, device.to_host) == ([((2,), False), ((2,), True)], [(3,)])


def test_collectives(device: Pretended) -> None:
    parallel.start(threads=1)
    try:
        dist.all_reduce(there(3))
        assert device.cpu_collectives == []
        dist.all_reduce(torch.ones(3))
        assert device.cpu_collectives == [("allreduce_", 3)]
        with pytest.raises(Mixed, match="in one collective"):
            dist.all_gather([torch.ones(3)], there(3))
        device.backends = {"cuda"}
        with pytest.raises(Mixed, match="NCCL alone"):
            dist.all_reduce(torch.ones(3))
    finally:
        parallel.stop()


def test_a_job_of_somebody_else_with_nccl_alone(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where it is joined: votes and counts are tensors of the CPU."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel.start(threads=1)
        monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
        with pytest.raises(UserError, match="no tensors of the CPU"):
            parallel.start(threads=1)
    finally:
        parallel.stop()


def test_nothing_is_left_of_it() -> None:
    assert not torch.cuda.is_available()
    assert "device" not in vars(torch.Tensor)
    assert (torch.ones(3) + torch.ones(3)).device.type == "cpu"
