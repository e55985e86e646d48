"""What a model whose gradients are taken is, whoever made it (headwater.py, huggingface.py).

Both are put behind `TracedModel`: the linear layers of the blocks as `Site`s, and one forward and backward pass over a
list of examples. Weights are frozen, so that autograd computes no weight gradients: the rows are made from each layer's
inputs and output gradients (rows/).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.train.parallel import World


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens, int64 [n], with a loss on those from `target_start` on: for a passage on every token but the first."""

    tokens: np.ndarray
    target_start: int = 1


@dataclass(slots=True, eq=False)
class Site:
    """A linear layer, or the part of one that this rank holds.

    Attributes:
        name: canonical name, without `.weight`.
        module: the layer; its forward gives the output, or a tuple that begins with it.
        shape: (O, I) of the whole layer.
        out_parts, in_parts: the ranges of outputs and inputs that are here, in the order in which they stand here.
        shared: sites with one key read the same input.
    """

    name: str
    module: nn.Module
    shape: tuple[int, int]
    out_parts: list[tuple[int, int]] = field(default_factory=list)
    in_parts: list[tuple[int, int]] = field(default_factory=list)
    shared: str = ""

    def __post_init__(self) -> None:
        self.out_parts = self.out_parts or [(0, self.shape[0])]
        self.in_parts = self.in_parts or [(0, self.shape[1])]
        self.shared = self.shared or self.name


class TracedModel(abc.ABC):
    """A frozen model whose linear layers can be watched during a backward pass.

    Attributes:
        world: process groups, or None for a model on one process.
        fingerprint: of the weights.
        description: what an index notes of the model, enough to open it again.
        bounds: of the examples of the running batch in the flattened tokens that the sites see, rising.
        context: longest input, or None.
    """

    world: World | None = None
    bounds: list[int]
    fingerprint: str
    description: dict[str, Any]
    context: int | None = None
    device = torch.device("cpu")

    @property
    @abc.abstractmethod
    def sites(self) -> list[Site]:
        """The linear layers of the blocks that are on this rank, in order."""

    @property
    @abc.abstractmethod
    def all_shapes(self) -> dict[str, tuple[int, int]]:
        """(O, I) of every linear layer of the whole model, in order."""

    @abc.abstractmethod
    def backward(self, examples: Sequence[Example], loss: str) -> None:
        """Forward and backward over the summed token losses of the examples; sets `bounds` before either.

        The weights are frozen: the caller has hooks that make what is to be differentiated require gradients.
        """

    @abc.abstractmethod
    def second_moment(self, site: Site) -> Tensor:
        """Adam's second moment of the whole layer, float32 [O, I], without bias."""


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)
