"""What a model whose gradients are taken is, whoever made it (headwater.py, huggingface.py).

Both are put behind `TracedModel`: the linear layers of the blocks as `Site`s, and one forward and backward pass over a
list of examples. Weights are frozen, so that autograd computes no weight gradients: the rows are made from each layer's
inputs and output gradients (rows/).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.train.parallel import World
from headwater.train.stream.passages import PassageSet

EPS = 1e-8
"""Adam's epsilon where nothing says another."""


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens, int64 [n], with a loss on those from `target_start` on: for a passage on every token but the first.

    Attributes:
        weights: what each token's loss counts, float32 [n], 0 for none (what others than the assistant say in a chat);
            all 1 if not given.
    """

    tokens: np.ndarray
    target_start: int = 1
    weights: np.ndarray | None = None

    @classmethod
    def of_passage(cls, passages: PassageSet, number: int) -> Example:
        """A passage of a corpus, with a loss on the tokens that carry one there."""
        counted = passages.counted(number)
        weights = None if counted is None else counted.astype(np.float32)
        return cls(passages.tokens(number).astype(np.int64), weights=weights)

    @property
    def loss_weights(self) -> np.ndarray:
        """What the loss of each token but the first counts, float32 [n - 1]."""
        weights = np.ones(len(self.tokens), dtype=np.float32) if self.weights is None else self.weights
        counted = np.array(weights[1:], dtype=np.float32)
        counted[: self.target_start - 1] = 0
        return counted


@dataclass(slots=True, eq=False)
class Site:
    """A linear layer, or a part of one: what this rank holds of it, or one expert of a stack. The parts of a layer
    have its name, and their rows add up.

    Attributes:
        name: canonical name, without `.weight`.
        module: the layer; its forward gives the output, or a tuple that begins with it. None: nothing but products with
            the weight can be seen (products.py).
        shape: (O, I) of the whole layer.
        out_parts, in_parts: the ranges of outputs and inputs that are here, in the order in which they stand here.
        shared: sites with one key have the same projection of their inputs, and may read the same input.
        parameter: the weight; the module's own if not given.
        turned: the weight is stored as [I, O].
        piece, pieces: which of how many equal pieces of the weight, cut along its first dimension, this is.
        routed: it sees some tokens only, in an order of its own.
    """

    name: str
    module: nn.Module | None
    shape: tuple[int, int]
    out_parts: list[tuple[int, int]] = field(default_factory=list)
    in_parts: list[tuple[int, int]] = field(default_factory=list)
    shared: str = ""
    parameter: nn.Parameter | None = None
    turned: bool = False
    piece: int = 0
    pieces: int = 1
    routed: bool = False

    def __post_init__(self) -> None:
        self.out_parts = self.out_parts or [(0, self.shape[0])]
        self.in_parts = self.in_parts or [(0, self.shape[1])]
        self.shared = self.shared or self.name

    @property
    def weight(self) -> nn.Parameter:
        if self.parameter is not None:
            return self.parameter
        assert self.module is not None
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def group(self) -> tuple[str, int]:
        """Sites with one key may read the same input."""
        return self.shared, self.piece

    def matrix(self, stored: Tensor) -> Tensor:
        """The part [O, I] that is here of what is stored as the weight is: itself, its gradient, its moments."""
        if self.pieces > 1 or stored.ndim > 2:
            stored = stored.reshape(self.pieces, -1, stored.shape[-1])[self.piece]
        return stored.t() if self.turned else stored

    def true_input(self, given: Tensor) -> Tensor:
        """What the layer multiplies its weight with when it is handed `given` [..., I]: the same, but for a layer that
        has a norm within (Transformer Engine's fused ones)."""
        if self.module is None or getattr(self.module, "layer_norm_weight", None) is None:
            return given
        return fused_norm(self.module, given)


def fused_norm(module: Any, given: Tensor) -> Tensor:
    """The norm that Transformer Engine's `LayerNormLinear` applies to what it is handed, in its type.

    Args:
        module: has `layer_norm_weight`, `eps`, `normalization` (LayerNorm or RMSNorm), maybe `layer_norm_bias` and
            `zero_centered_gamma` (the weight is stored less 1).
    """
    x, weight = given.float(), module.layer_norm_weight.float()
    if getattr(module, "zero_centered_gamma", False):
        weight = weight + 1
    if getattr(module, "normalization", "LayerNorm") == "RMSNorm":
        normed = nn.functional.rms_norm(x, x.shape[-1:], weight, module.eps)
    else:
        bias = getattr(module, "layer_norm_bias", None)
        normed = nn.functional.layer_norm(
            x, x.shape[-1:], weight, bias.float() if bias is not None else None, module.eps
        )
    return normed.to(given.dtype)


class TracedModel(abc.ABC):
    """A frozen model whose linear layers can be watched during a backward pass.

    Attributes:
        world: process groups, or None for a model on one process.
        fingerprint: of the weights.
        description: what an index notes of the model, enough to open it again where `places` are known.
        places: the files and directories that it was opened from, by the setting that names them.
        bounds: of the examples of the running batch in the flattened tokens that the sites see, rising.
        context: longest input, or None.
        vocabulary: rows of the embedding, or None.
        parameters: numbers of the whole model, a tied one counted once.
        alone: one example at a time: with several, their tokens could not be told apart, or would change each other.
        left_out: linear layers that the model has and never calls.
        predicting: the places of the running batch that predict a token with a loss, int64 [K], rising; set before the
            loss is taken.
        eps: of the Adam whose second moments it has, which a correction by them adds to their roots.
        agreed: the layers whose rows have been held against autograd's gradients (rows/agreement.py).
    """

    bounds: list[int]
    predicting: Tensor
    fingerprint: str
    description: dict[str, Any]
    places: dict[str, Path]
    world: World | None = None
    context: int | None = None
    vocabulary: int | None = None
    parameters: int = 0
    eps: float = EPS
    alone: bool = False
    left_out: Sequence[str] = ()
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.agreed: set[str] = set()

    @property
    @abc.abstractmethod
    def sites(self) -> list[Site]:
        """The linear layers of the blocks that are on this rank, in order."""

    @property
    @abc.abstractmethod
    def all_shapes(self) -> dict[str, tuple[int, int]]:
        """(O, I) of every linear layer of the whole model, in order."""

    @property
    def head(self) -> Site | None:
        """The output head, or this rank's part of it; None where a rank has none, or the logits are more than a product
        of the hidden states with one matrix."""
        return None

    @property
    def head_shape(self) -> tuple[str, tuple[int, int]] | None:
        """Name and (V, d) of the whole model's output head, if it can have rows."""
        return (self.head.name, self.head.shape) if self.head is not None else None

    @abc.abstractmethod
    def backward(self, examples: Sequence[Example], loss: str) -> None:
        """Forward and backward over the summed token losses of the examples; sets `bounds` before either.

        The weights are frozen: the caller has hooks that make what is to be differentiated require gradients.
        """

    def own_backward(self, example: Example) -> None:
        """Forward and backward over the cross entropy of one example as the model makes it by itself."""
        self.backward([example], "cross_entropy")

    @abc.abstractmethod
    def second_moment(self, site: Site) -> Tensor:
        """Adam's second moment of the whole layer, float32 [O, I], without bias."""


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)
