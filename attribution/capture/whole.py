"""What a rank holds a part of, made whole: layers, moments, sequences of tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headwater.attribution.models.headwater import layer_order
from headwater.train import parallel
from headwater.train.engine import Engine
from headwater.train.model import ParameterPart
from headwater.train.parallel import World


def whole_shapes(mine: dict[str, ParameterPart], world: World) -> dict[str, tuple[int, int]]:
    """(O, I) of the block linear layers of all pipeline stages, in order."""
    shapes = {name: (part.shape[0], part.shape[1]) for name, part in mine.items()}
    if world.pipeline > 1:
        group = parallel.pipeline_group()
        stages: list[Any] = [None] * world.pipeline
        dist.all_gather_object(stages, shapes, group=group)
        shapes = {name: shape for stage in stages for name, shape in stage.items()}
    return {name: shapes[name] for name in sorted(shapes, key=layer_order)}


def whole_moment(engine: Engine, part: ParameterPart, world: World) -> Tensor:
    """Adam's second moment of a whole layer, float32 [O, I]; collective over its tensor-parallel and data ranks."""
    moment = engine.second_moment(part.parameter).float()
    if world.tensor == 1:
        return moment
    parts = [torch.empty_like(moment) for _ in range(world.tensor)]
    dist.all_gather(parts, moment.contiguous(), group=parallel.tensor_group())
    return part.join(parts)


def whole_sequence(x_TF: Tensor, tokens: int) -> Tensor:
    """Under sequence parallelism some layers see a share of the tokens: all of them, [tokens, F]."""
    if len(x_TF) == tokens:
        return x_TF
    parts = [torch.empty_like(x_TF) for _ in range(tokens // len(x_TF))]
    dist.all_gather(parts, x_TF.contiguous(), group=parallel.tensor_group())
    return torch.cat(parts)
