"""A device that is not there: numbers lie in the CPU's memory, and all else is as on a GPU.

    with pretended() as device:
        x = torch.ones(3, device="cuda")      # x.device is cuda:0
        x + torch.ones(3)                     # raises Mixed: a tensor of the CPU among those of the device

A mark on each storage says that it is the device's. `Tensor.device`, `.to`, `.cpu`, `.numpy` and every function that
makes tensors read or set the mark; a dispatch mode looks at each operation, backward passes and hooks included, and
refuses mixtures as CUDA does, code for the CPU alone (oneDNN's products, our own by address), and collectives on
tensors that the job has no backend for. It counts copies, and what makes the host wait. Nothing of the product knows.

What it cannot see: whether a kernel that exists on a CPU exists on a GPU, and its numbers; what C++ code does within
one operation. A tensor that C++ makes by itself (an autograd formula's zeros) belongs to whom it is first used with.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
aten = torch.ops.aten

DEVICE, PINNED, UNCLAIMED = "device", "pinned", "unclaimed"
_CROSS = {aten.copy_.default, aten._foreach_copy_.default}
_STRICT = {aten.cat.default, aten.stack.default}
"""They take no number of the CPU's in between, as others do."""
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
_WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}
"""What the host waits for until the device is done."""
_QUIET = (
    "empty_cache", "max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved",
    "reset_peak_memory_stats",
)  # fmt: skip
"""Of `torch.cuda`: they say nothing here."""
_CPU_CODE = ("headwater.kernels.cpu", "headwater.kernels.coded")


def here() -> torch.device:
    """The device of this process."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


class Mixed(AssertionError):
    """What a GPU would not do. Not a RuntimeError, which code under test may catch."""


class Pretended:
    """The device.

    Attributes:
        backends: for which devices' tensors the job has collectives.
        waits: operations that the host waited for, by name.
        to_host: shapes of tensors copied to the CPU.
        to_device: shapes of tensors copied from it, and whether they came from pinned memory.
        cpu_collectives: names of collectives on tensors of the CPU, and how many numbers were sent.
    """

    def __init__(self) -> None:
        self.backends = {"cpu", "cuda"}
        self.waits: list[str] = []
        self.to_host: list[tuple[int, ...]] = []
        self.to_device: list[tuple[tuple[int, ...], bool]] = []
        self.cpu_collectives: list[tuple[str, int]] = []
        self._marks: dict[int, tuple[StorageWeakRef, str]] = {}
        self._lock = threading.RLock()

    def forget(self) -> None:
        """Begins to count anew."""
        for each in (self.waits, self.to_host, self.to_device, self.cpu_collectives):
            each.clear()

    def kind(self, tensor: Tensor) -> str:
        """ "device", "pinned", "unclaimed", or "" for the CPU."""
        return self._marks.get(_key(tensor), (None, ""))[1]

    def mark(self, tensor: Tensor, kind: str) -> None:
        key = _key(tensor)
        with self._lock:
            self._marks.pop(key, None)
            if kind and key:
                # While it is held weakly, a storage's address belongs to no other.
                self._marks[key] = StorageWeakRef(tensor.untyped_storage()), kind
            if len(self._marks) > 100_000:
                self._marks = {key: mark for key, mark in self._marks.items() if not mark[0].expired()}

    def has(self, tensor: Tensor) -> bool:
        return self.kind(tensor) == DEVICE

    def moved(
        self, tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None, copy: bool = False
    ) -> Tensor:
        """What `Tensor.to` gives."""
        there = device.type == "cuda"
        if there == self.has(tensor):
            return _original_to(tensor, dtype or tensor.dtype, copy=copy)
        if there:
            self.to_device.append((tuple(tensor.shape), self.kind(tensor) == PINNED))
        else:
            self.to_host.append(tuple(tensor.shape))
        if tensor.requires_grad and torch.is_grad_enabled():
            return _Moved.apply(tensor, self, dtype, there)
        return _copied(tensor, self, dtype, there)

    def look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]) -> bool:
        """Whether an operation runs on the device.

        Raises:
            Mixed: it could not run on a GPU.
        """
        kinds = [self.kind(each) for each in given]
        on = DEVICE in kinds
        name = func._schema.name
        if name.startswith("c10d::"):
            self._collective(name, given, kinds)
            return on
        if not on or func in _CROSS:
            return on
        if name.startswith("mkldnn::"):
            raise Mixed(f"{name} is oneDNN's, for a CPU alone")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise Mixed(f"{name}: a generator of the CPU draws a tensor of the device")
        free = func not in _STRICT
        strangers = [x for x, k in zip(given, kinds, strict=True) if k in ("", PINNED) and not (free and x.dim() == 0)]
        if name in _INDEXING:
            strangers = self._beside_indices(args, strangers)
        if strangers:
            raise Mixed(f"{name}: a CPU tensor of shape {tuple(strangers[0].shape)} among tensors of {here()}")
        if name in _WAITS or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None):
            self.waits.append(name)
        return on

    def _beside_indices(self, args: tuple[Any, ...], strangers: list[Tensor]) -> list[Tensor]:
        """CUDA copies indices over by itself, and waits; a mask it counts, and waits as well."""
        indices = [each for each in args[1] if each is not None]
        if not self.has(args[0]):
            return [args[0]]
        filled = len(args) > 2 and args[2].dim() == 0
        if any(each.dtype in (torch.bool, torch.uint8) for each in indices) and not filled:
            self.waits.append("a mask as an index")
        if any(each is stranger for each in indices for stranger in strangers):
            self.waits.append("indices on the CPU")
        return [each for each in strangers if not any(each is index for index in indices)]

    def _collective(self, name: str, given: list[Tensor], kinds: list[str]) -> None:
        if DEVICE in kinds and any(kind in ("", PINNED) for kind in kinds):
            raise Mixed(f"{name}: tensors of the CPU and of {here()} in one collective")
        if given and DEVICE not in kinds:
            if "cpu" not in self.backends:
                raise Mixed(f"{name} on a CPU tensor of shape {tuple(given[0].shape)}: the job has NCCL alone")
            self.cpu_collectives.append((name.removeprefix("c10d::"), max(each.numel() for each in given)))

    def settle(self, given: list[Tensor], made: list[Tensor], on: bool) -> None:
        """Marks what an operation made."""
        before = {_key(each) for each in given}
        kinds = {self.kind(each) for each in given}
        for each in made:
            if _key(each) not in before:
                self.mark(each, DEVICE if on else UNCLAIMED if not given or kinds == {UNCLAIMED} else "")
        if on:
            for each in given:
                if self.kind(each) == UNCLAIMED:
                    self.mark(each, DEVICE)


class _Watch(TorchDispatchMode):
    def __init__(self, device: Pretended) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        on = self.device.look(func, args, kwargs, given)
        out = func(*args, **kwargs)
        self.device.settle(given, list(_tensors((out,))), on)
        return out


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _key(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # oneDNN's own layouts
        return 0


_original_to = torch.Tensor.to


def _copied(tensor: Tensor, device: Pretended, dtype: torch.dtype | None, there: bool) -> Tensor:
    out = _original_to(tensor.detach(), dtype or tensor.dtype, copy=True)
    device.mark(out, DEVICE if there else "")
    return out


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: Pretended, dtype: torch.dtype | None, there: bool) -> Tensor:
        ctx.device, ctx.dtype, ctx.there = device, tensor.dtype, there
        return _copied(tensor, device, dtype, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _copied(grads[0], ctx.device, ctx.dtype, not ctx.there), None, None, None


def _patch_tensors(patch: pytest.MonkeyPatch, device: Pretended) -> None:
    numpy, array, tolist, address = Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr

    def to(self: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            return device.moved(self, args[0].device, args[0].dtype, copy)
        target, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        if layout is not None:
            return _original_to(self, *args, copy=copy, **kwargs)
        return device.moved(self, target or self.device, dtype, copy)

    def on_host(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if device.has(self):
                raise Mixed(f"a tensor of {here()}, of shape {tuple(self.shape)}, cannot be an array of numpy's")
            return original(self, *args, **kwargs)

        return called

    def listed(self: Tensor) -> Any:
        if device.has(self):
            device.waits.append("tolist")
        return tolist(self)

    def data_ptr(self: Tensor) -> int:
        if device.has(self) and sys._getframe(1).f_globals.get("__name__", "").startswith(_CPU_CODE):
            raise Mixed("code for the CPU was given a tensor of the device")
        return address(self)

    def pinned(self: Tensor, *_: Any) -> Tensor:
        if device.has(self):
            raise Mixed("only tensors of the CPU can be pinned")
        out = self.clone()
        device.mark(out, PINNED)
        return out

    for name, value in {
        "device": property(lambda self: here() if device.has(self) else CPU),
        "is_cuda": property(device.has),
        "is_cpu": property(lambda self: not device.has(self)),
        "get_device": lambda self: here().index if device.has(self) else -1,
        "to": to,
        "cpu": lambda self, *_, **__: device.moved(self, CPU),
        "cuda": lambda self, *_, **__: device.moved(self, here()),
        "numpy": on_host(numpy),
        "__array__": on_host(array),
        "tolist": listed,
        "data_ptr": data_ptr,
        "pin_memory": pinned,
        "is_pinned": lambda self, *_: device.kind(self) == PINNED,
    }.items():
        patch.setattr(Tensor, name, value)
    for name in ("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "new_empty_strided"):
        patch.setattr(Tensor, name, _maker(getattr(Tensor, name), device, like=True))


def _maker(original: Callable[..., Any], device: Pretended, *, like: bool) -> Callable[..., Any]:
    """A function that makes tensors: on the CPU unless it is told otherwise, or beside the tensor that it is like."""

    def made(*args: Any, **kwargs: Any) -> Any:
        asked, pin = kwargs.pop("device", None), kwargs.pop("pin_memory", False)
        if asked is None:
            where = args[0].device if args and isinstance(args[0], Tensor) and like else CPU
        else:
            where = torch.device("cuda", asked) if isinstance(asked, int) else torch.device(asked)
        if where.type == "meta":
            return original(*args, device="meta", **kwargs)
        there = where.type == "cuda"
        if there and kwargs.get("generator") is not None:
            raise Mixed("a generator of the CPU draws a tensor of the device")
        out = original(*args, **kwargs)
        if isinstance(out, Tensor):
            given = args[0] if args and isinstance(args[0], Tensor) else None
            if given is not None and _key(given) == _key(out):
                return device.moved(out, where)
            device.mark(out, DEVICE if there else PINNED if pin else "")
        return out

    return made


def _patch_functions(patch: pytest.MonkeyPatch, device: Pretended) -> None:
    names = [each.__name__ for each in _device_constructors() if hasattr(each, "__name__")]
    for name in [*names, *(f"{each}_like" for each in ("empty", "zeros", "ones", "full", "rand", "randn", "randint"))]:
        original = getattr(torch, name, None)
        if original is not None:
            like = name.endswith("_like") or name in ("as_tensor", "asarray")
            patch.setattr(torch, name, _maker(original, device, like=like))
    init = dist.init_process_group

    def joined(backend: str | None = None, **kwargs: Any) -> None:
        init("gloo", **kwargs)

    patch.setattr(dist, "init_process_group", joined)
    for name, value in {
        "is_available": lambda: True,
        "current_device": lambda: here().index,
        "device_count": lambda: here().index + 1,
        "set_device": lambda *_: None,
        "synchronize": lambda *_: None,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(major=9, minor=0, total_memory=80 << 30),
        "is_bf16_supported": lambda *_: True,
        **dict.fromkeys(_QUIET, lambda *_, **__: 0),
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.cuda, "Event", lambda *_, **__: mock.MagicMock(**{"elapsed_time.return_value": 1.0}))
    for name in ("Stream", "current_stream", "default_stream", "stream"):
        patch.setattr(torch.cuda, name, lambda *_, **__: mock.MagicMock())
    patch.setattr(Tensor, "record_stream", lambda *_: None)
    for name in ("range_push", "range_pop"):
        patch.setattr(torch.cuda.nvtx, name, lambda *_, **__: None)
    run = threading.Thread.run

    def watched(thread: threading.Thread) -> None:
        with _Watch(device):
            run(thread)

    patch.setattr(threading.Thread, "run", watched)


@contextmanager
def pretended() -> Iterator[Pretended]:
    """Within it there is a GPU, `cuda:0`, whose kernels are those of the CPU."""
    device = Pretended()
    with pytest.MonkeyPatch.context() as patch:
        _patch_tensors(patch, device)
        _patch_functions(patch, device)
        with _Watch(device):
            yield device
