"""Headwater's own models, in any parallel layout, as ones whose gradients are taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from headwater.attribution.models.base import EPS, Example, Site, TracedModel, freeze
from headwater.configs.errors import UserError
from headwater.train.checkpoint import Checkpoint, model_settings
from headwater.train.loading import load_weights
from headwater.train.model import EMBEDDING, HEAD, Batch, ParameterPart, build_model, head_part, parameter_parts
from headwater.train.parallel import World, tensor_rank, tensor_size
from headwater.train.pipeline import run_schedule
from headwater.train.settings import TrainSettings

HEAD_NAME = HEAD.removesuffix(".weight")


class HeadwaterModel(TracedModel):
    """A checkpoint of a run, under the process groups of `world`."""

    def __init__(self, checkpoint: Checkpoint, world: World, precision: str = "fp32") -> None:
        super().__init__()
        self.checkpoint, self.world, self.device = checkpoint, world, world.device
        settings = model_settings(checkpoint)
        self.gpt = build_model(settings, TrainSettings(precision=precision), world, seed=0)
        load_weights(self.gpt, checkpoint)
        freeze(self.gpt)
        self.fingerprint = checkpoint.fingerprint
        self.description = {
            "kind": "headwater",
            "step": checkpoint.step,
            "precision": precision,
        }
        self.places = {"run": checkpoint.path.parent.parent}
        self.vocabulary = settings.vocab_size
        self.eps = float(checkpoint.meta.get("optimizer", {}).get("eps", EPS))
        self.parameters = sum(math.prod(entry["shape"]) for entry in checkpoint.meta["tensors"]["weight"].values())

    @property
    def sites(self) -> list[Site]:
        return megatron_sites(self.gpt, self.world)

    @property
    def all_shapes(self) -> dict[str, tuple[int, int]]:
        entries = self.checkpoint.meta["tensors"]["weight"]
        names = sorted((name for name in entries if is_block_linear(name)), key=layer_order)
        return {name.removesuffix(".weight"): tuple(entries[name]["shape"]) for name in names}

    @property
    def head(self) -> Site | None:
        part = head_part(self.gpt)
        return megatron_head(part) if part is not None else None

    @property
    def head_shape(self) -> tuple[str, tuple[int, int]]:
        entries = self.checkpoint.meta["tensors"]["weight"]
        shape = entries.get(HEAD, entries[EMBEDDING])["shape"]
        return HEAD_NAME, (shape[0], shape[1])

    def backward(self, examples: Sequence[Example], loss: str) -> None:
        self.gpt.loss_kind = loss
        batch, self.bounds = pack(examples)
        batch = batch.to(self.device)
        self.predicting = batch.places()
        assert self.world is not None
        if self.world.pipeline > 1:
            self._piped(batch)
            return
        total = self.gpt.run(batch)[0]
        if total.requires_grad:  # the head's rows alone are made on the way
            total.backward()

    def _piped(self, batch: Batch) -> None:
        run_schedule(self.gpt, [batch], lambda output: (output[0], {}))

    def second_moment(self, site: Site) -> Tensor:
        beta2 = self.checkpoint.meta.get("optimizer", {}).get("beta2")
        updates = self.checkpoint.meta.get("updates")
        if not updates or beta2 is None:
            raise UserError(
                f"{self.checkpoint.path} holds no moments",
                got="a checkpoint before the first update, or not of a training",
                fix="take a later checkpoint, or correction=none",
            )
        name = f"{site.name}.weight"
        if name == HEAD and HEAD not in self.checkpoint.meta["tensors"]["weight"]:
            name = EMBEDDING  # tied to it
        return self.checkpoint.tensor("exp_avg_sq", name) / (1 - beta2**updates)


def megatron_sites(gpt: nn.Module, world: World | None) -> list[Site]:
    """The block linear layers of this rank's part of a Headwater model."""
    modules = dict(gpt.named_modules())
    local_names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    return [
        megatron_site(part, modules[local_names[id(part.parameter)].removesuffix(".weight")], world)
        for part in parameter_parts(gpt)  # type: ignore[arg-type]
        if is_block_linear(part.name)
    ]


def megatron_head(part: ParameterPart) -> Site:
    """The rows of the output head that this rank holds."""
    width = part.shape[0] // tensor_size()
    first = tensor_rank() * width
    shape = (part.shape[0], part.shape[1])
    return Site(HEAD_NAME, None, shape, out_parts=[(first, first + width)], parameter=part.parameter)


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
        if example.weights is not None:
            batch.weights_T[start : start + len(example.tokens) - 1] = torch.from_numpy(example.loss_weights)
    return batch, bounds.tolist()
