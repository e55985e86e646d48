"""Models whose gradients are taken: Headwater's own in any parallel layout, and any Hugging Face one (huggingface.py).

Both are put behind `TracedModel`: the linear layers of the blocks as `Site`s, and one forward and backward pass over a
list of examples. Weights are frozen, so that autograd computes no weight gradients: the rows are made from each layer's
inputs and output gradients (gradients.py).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.attribution.settings import TracedModelSettings
from headwater.configs.errors import MissingError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.checkpoint import Checkpoint, load_weights, newest, open_checkpoint
from headwater.train.model import Batch, ParameterPart, build_model, parameter_parts
from headwater.train.parallel import World, tensor_rank, tensor_size
from headwater.train.pipeline import run_schedule
from headwater.train.settings import ModelSettings, TrainSettings


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


class HeadwaterModel(TracedModel):
    """A checkpoint of a run, under the process groups of `world`."""

    def __init__(self, checkpoint: Checkpoint, world: World, precision: str = "fp32") -> None:
        self.checkpoint, self.world, self.device = checkpoint, world, world.device
        settings = ModelSettings(**checkpoint.meta["model"])
        self.gpt = build_model(settings, TrainSettings(precision=precision), world, seed=0)
        load_weights(self.gpt, checkpoint)
        freeze(self.gpt)
        self.fingerprint = checkpoint.fingerprint
        self.description = {
            "kind": "headwater",
            "run": str(checkpoint.path.parent.parent),
            "step": checkpoint.step,
            "precision": precision,
        }
        self._layers = settings.layers

    @property
    def sites(self) -> list[Site]:
        return megatron_sites(self.gpt, self.world)

    @property
    def all_shapes(self) -> dict[str, tuple[int, int]]:
        entries = self.checkpoint.meta["tensors"]["weight"]
        names = sorted((name for name in entries if is_block_linear(name)), key=layer_order)
        return {name.removesuffix(".weight"): tuple(entries[name]["shape"]) for name in names}

    def backward(self, examples: Sequence[Example], loss: str) -> None:
        self.gpt.loss_kind = loss
        batch, self.bounds = pack(examples)
        batch = batch.to(self.device)
        assert self.world is not None
        if self.world.pipeline > 1:
            self._piped(batch)
        else:
            self.gpt.run(batch)[0].backward()

    def _piped(self, batch: Batch) -> None:
        run_schedule(self.gpt, [batch], lambda output: (output[0], {}))

    def second_moment(self, site: Site) -> Tensor:
        beta2 = self.checkpoint.meta["optimizer"]["beta2"]
        updates = self.checkpoint.meta["updates"]
        if not updates:
            raise UserError(
                f"{self.checkpoint.path} holds no moments",
                got="a checkpoint before the first update",
                fix="take a later checkpoint, or correction=none",
            )
        return self.checkpoint.tensor("exp_avg_sq", f"{site.name}.weight") / (1 - beta2**updates)


def megatron_sites(gpt: nn.Module, world: World | None) -> list[Site]:
    """The block linear layers of this rank's part of a Headwater model."""
    modules = dict(gpt.named_modules())
    local_names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    return [
        megatron_site(part, modules[local_names[id(part.parameter)].removesuffix(".weight")], world)
        for part in parameter_parts(gpt)  # type: ignore[arg-type]
        if is_block_linear(part.name)
    ]


def is_block_linear(name: str) -> bool:
    return name.startswith("decoder.layers.") and ".linear_" in name and name.endswith(".weight")


def layer_order(name: str) -> tuple[int, int]:
    order = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    place = next(i for i, part in enumerate(order) if part in name)
    return int(name.split(".")[2]), place


def megatron_site(part: ParameterPart, module: nn.Module, world: World | None) -> Site:
    """The part of a Megatron linear layer that this rank holds."""
    name, (outputs, inputs) = part.name.removesuffix(".weight"), part.shape
    rank, size = tensor_rank(), tensor_size()

    def mine(start: int, width: int) -> tuple[int, int]:
        return start + rank * (width // size), start + (rank + 1) * (width // size)

    if part.dim == 1:
        return Site(name, module, (outputs, inputs), in_parts=[mine(0, inputs)])
    if part.gated:
        half = outputs // 2
        return Site(name, module, (outputs, inputs), out_parts=[mine(0, half), mine(half, half)])
    return Site(name, module, (outputs, inputs), out_parts=[mine(0, outputs)])


def pack(examples: Sequence[Example], multiple: int = 32) -> tuple[Batch, list[int]]:
    """Examples end to end, padded to a multiple of tokens: new shapes cost oneDNN milliseconds each."""
    lengths = [len(example.tokens) for example in examples]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate([example.tokens for example in examples]).astype(np.int64)
    padding = -len(tokens) % multiple
    counted = [True] * len(lengths)
    if padding:
        tokens = np.concatenate([tokens, np.zeros(padding, dtype=np.int64)])
        lengths, counted = [*lengths, padding], [*counted, False]
    batch = Batch.from_lengths(torch.from_numpy(tokens), torch.tensor(lengths), torch.tensor(counted))
    for example, start in zip(examples, bounds[:-1].tolist(), strict=True):
        batch.weights_T[start : start + example.target_start - 1] = 0
    return batch, bounds.tolist()


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)


def open_model(settings: TracedModelSettings, world: World | None = None) -> TracedModel:
    """Opens what the settings name.

    Raises:
        MissingError: no such run, checkpoint or model.
    """
    if settings.path:
        from headwater.attribution.models.huggingface import HuggingFaceModel

        return HuggingFaceModel(settings.path, settings.precision, settings.optimizer_state)
    if world is None:
        raise ValueError("a Headwater checkpoint needs process groups: call parallel.start first")
    run = RunDir.at(settings.run)
    if settings.step is not None:
        checkpoint: Checkpoint | None = open_checkpoint(run.checkpoint(settings.step))
    else:
        checkpoint = newest(run.checkpoints)
    if checkpoint is None:
        raise MissingError(f"{run.path} has no checkpoint", fix="run `headwater pretrain` first")
    return HeadwaterModel(checkpoint, world, settings.precision)


def model_settings_of(description: dict[str, Any]) -> TracedModelSettings:
    """The settings that open the model an index was made with."""
    if description["kind"] == "headwater":
        return TracedModelSettings(run=description["run"], step=description["step"], precision=description["precision"])
    return TracedModelSettings(
        path=description["path"],
        precision=description["precision"],
        optimizer_state=description.get("optimizer_state", ""),
    )
