"""Filling a model or an engine of any layout from a checkpoint, each number read by one rank of those that need it.

What several data-parallel ranks need, the weights, each reads a part of and gives to the others; what one of them alone
keeps, its part of the optimizer's state, it reads alone. So all ranks together read a checkpoint about once, however
many they are, where 256 replicas that each read it would read it 256 times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from headwater.configs.errors import MismatchError
from headwater.train import parallel
from headwater.train.checkpoint import KINDS, Checkpoint
from headwater.train.engine import Engine
from headwater.train.model import EMBEDDING, PackedGPT, ParameterPart, parameter_parts, tied_copy
from headwater.train.tensor_files import TensorFile
from headwater.train.zero import kept_span


def load_weights(model: PackedGPT, checkpoint: Checkpoint) -> None:
    """Copies this rank's part of the weights into the model, before an engine takes it over. Collective."""
    with Pieces(checkpoint) as pieces, torch.no_grad():
        for part in _targets(model):
            shape = part.parameter.shape
            part.parameter.copy_(pieces.shared("weight", part, part.parameter.device).view(shape))


def load_engine(engine: Engine, checkpoint: Checkpoint) -> None:
    """Puts weights, moments and the count of updates into an engine whose moments exist, and whose model has been given
    the weights before (`load_weights`). Collective."""
    device = engine.world.device
    with Pieces(checkpoint) as pieces, torch.no_grad():
        for part in _targets(engine.model):
            span = kept_span(part.parameter)
            if span is None:
                state = {kind: pieces.shared(kind, part, device) for kind in KINDS}
            else:
                state = {kind: pieces.read(kind, part, *span).to(device) for kind in KINDS}
            engine.load_kept(part.parameter, state)
    engine.set_steps(checkpoint.meta["updates"])


class Pieces:
    """Reads pieces of a checkpoint's tensors. On leaving, all ranks agree: where one cannot read its piece none is left
    waiting for it, and each raises what it met with."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._files: dict[Path, TensorFile] = {}
        self._error: BaseException | None = None

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        world = parallel.joined()
        if world is not None and error is None:
            parallel.agree(world, self._error)

    def read(self, kind: str, part: ParameterPart, first: int, count: int) -> Tensor:
        """float32 [count], on the CPU: numbers of this rank's tensor-parallel part, laid flat, from `first` on."""
        numbers = torch.zeros(count)

        def look() -> None:
            nonlocal numbers
            numbers = self._read(kind, part, first, count)

        if self._error is None:
            self._error = parallel.attempt(look)
        return numbers

    def shared(self, kind: str, part: ParameterPart, device: torch.device) -> Tensor:
        """float32, flat: the whole of this rank's tensor-parallel part, of which each replica reads a piece. Collective
        over data parallel."""
        group = parallel.data_group()
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        total = math.prod(part.shape) // (parallel.tensor_size() if part.dim is not None else 1)
        if size == 1:
            return self.read(kind, part, 0, total).to(device)
        width = -(-total // size)
        first = min(rank * width, total)
        own = self.read(kind, part, first, min(width, total - first))
        own = torch.nn.functional.pad(own, (0, width - len(own))).to(device)
        whole = torch.empty(size * width, device=device)
        dist.all_gather_into_tensor(whole, own, group=group)
        return whole[:total]

    def _read(self, kind: str, part: ParameterPart, first: int, count: int) -> Tensor:
        path = self.checkpoint.file(kind, part.name)
        if path not in self._files:
            self._files[path] = TensorFile(path, "use another checkpoint")
        file = self._files[path]
        if file.shape(part.name) != part.shape:
            raise MismatchError(
                f"{self.checkpoint.path}: {kind} {part.name} has another shape",
                got=file.shape(part.name),
                expected=part.shape,
                fix="use the model settings that the checkpoint was trained with",
            )
        return file.read(part.name, runs(part, parallel.tensor_rank(), parallel.tensor_size(), first, count), count)


def runs(part: ParameterPart, rank: int, size: int, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Where numbers of one tensor-parallel rank's part, laid flat, lie in the whole: (first, how many), in order.

    The part is so many blocks of the whole, one behind the other, of each of which the rank has its share: all of it,
    the gate's rows and then the up projection's, or each row where columns are shared out.
    """
    blocks = 1 if part.dim in (None, 0) else part.shape[0]
    blocks = 2 if part.gated else blocks
    stride = math.prod(part.shape) // blocks
    share, place = (size, rank) if part.dim is not None else (1, 0)
    width, end = stride // share, first + count
    while first < end:
        block, within = divmod(first, width)
        length = min(width - within, end - first)
        yield block * stride + place * width + within, length
        first += length


def _targets(model: PackedGPT) -> list[ParameterPart]:
    """What a checkpoint fills: the rank's parameters and its copy of a tied embedding, where it keeps one."""
    targets = list(parameter_parts(model))
    copy = tied_copy(model)
    if copy is not None:
        rows, width = copy.shape
        targets.append(ParameterPart(EMBEDDING, copy, (rows * parallel.tensor_size(), width), 0, False))
    return targets
