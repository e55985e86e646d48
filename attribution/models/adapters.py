"""A LoRA adapter in PEFT's format with the model that it was made for.

A PEFT directory holds adapter_config.json and adapter_model.safetensors, no model: W x becomes W x + s B A x in some
layers, with s = alpha / r (Hu et al. 2021, arXiv 2106.09685), or alpha / sqrt(r) for a rank-stabilised one
(Kalajdzievski 2023, arXiv 2312.03732). A and B are linear layers like any other, so their rows are made as any.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headwater.attribution.models.weights import open_causal_model, weights_of
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import read_json

_KEY = re.compile(r"^base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight$")
_UNKNOWN = ("use_dora", "modules_to_save", "layer_replication", "lora_bias", "trainable_token_indices")
"""Settings of PEFT that make something else of the model, if they are not empty."""


class LowRank(nn.Module):
    """A linear layer with an adapter."""

    def __init__(self, base_layer: Any, a_rI: Tensor, b_Or: Tensor, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale = base_layer, scale
        self.lora_A = linear(a_rI.to(base_layer.weight))
        self.lora_B = linear(b_Or.to(base_layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        base: Tensor = self.base_layer(x)
        low: Tensor = self.lora_B(self.lora_A(x))
        return base + low * self.scale


def linear(weight_OI: Tensor) -> nn.Linear:
    made = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight_OI, requires_grad=False)
    return made


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no model."""
    return (directory / "adapter_config.json").is_file() and not (directory / "config.json").exists()


def open_adapted(directory: Path, base: Path, dtype: torch.dtype) -> Any:
    """The base model with its adapter in place.

    Args:
        directory: PEFT's.
        base: the directory of the base model.

    Raises:
        MissingError, CorruptError, MismatchError, UserError: no such base model, another kind of adapter, or weights
            that do not fit.
    """
    model = open_causal_model(base, dtype)
    config = read_config(directory)
    pairs = read_pairs(directory)
    for name, pair in pairs.items():
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            layer = None
        place(model, directory, name, layer, pair, config)
    return model


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration of a plain LoRA adapter."""
    config = read_json(directory / "adapter_config.json", made_by="save_pretrained")
    if not isinstance(config, dict):
        raise CorruptError(f"{directory / 'adapter_config.json'} is not an adapter's configuration", fix="restore it")
    odd = {key: config[key] for key in _UNKNOWN if config.get(key)}
    if config.get("peft_type") != "LORA":
        odd["peft_type"] = config.get("peft_type")
    if config.get("bias", "none") != "none":
        odd["bias"] = config["bias"]
    if odd:
        raise UserError(
            f"{directory} holds an adapter of a kind that is not known",
            got=", ".join(f"{key} = {value}" for key, value in odd.items()),
            expected="a plain LoRA adapter (peft_type LORA, bias none)",
            fix="merge it into its base model (merge_and_unload, save_pretrained) and trace that",
        )
    return config


def base_of(directory: Path, given: str) -> Path:
    """The base model's directory: the one given, else the one that the adapter's configuration names; a relative one is
    looked for from here and beside the adapter."""
    named = given or str(read_config(directory).get("base_model_name_or_path") or "")
    for path in (Path(named), directory / named):
        if named and (path / "config.json").is_file():
            return path
    raise MissingError(
        f"the base model of the adapter {directory} is not here",
        got=named or "no name",
        expected="a directory with config.json and weights",
        fix="set model.base=DIR",
    )


def read_pairs(directory: Path) -> dict[str, dict[str, Tensor]]:
    """A [r, I] and B [O, r] of each layer that has an adapter."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, value in weights_of(directory, "adapter_model").items():
        match = _KEY.match(name)
        if match is None or value.ndim != 2:
            raise MismatchError(
                f"{directory} holds {name}", expected="lora_A and lora_B of linear layers", fix="merge the adapter"
            )
        pairs.setdefault(match[1], {})[match[2]] = value
    if not pairs or any(len(pair) < 2 for pair in pairs.values()):
        raise CorruptError(f"{directory} lacks a part of its adapter", expected="an A and a B for each layer")
    return pairs


def place(model: Any, directory: Path, name: str, layer: Any, pair: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Puts an adapter around a layer of the model."""
    from transformers.pytorch_utils import Conv1D

    shape = None
    if isinstance(layer, nn.Linear | Conv1D):
        shape = tuple(layer.weight.t().shape if isinstance(layer, Conv1D) else layer.weight.shape)
    rank = len(pair["A"])
    if shape is None or (len(pair["B"]), pair["A"].shape[1]) != shape or pair["B"].shape[1] != rank:
        raise MismatchError(
            f"the adapter {directory} does not fit its base model at {name}",
            got=f"A {tuple(pair['A'].shape)}, B {tuple(pair['B'].shape)}",
            expected=f"a linear layer {shape}" if shape else "a linear layer of the model",
            fix="set model.base to the model that it was made for",
        )
    alpha = next(
        (value for key, value in (config.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({key})$", name)),
        config.get("lora_alpha") or 8,
    )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, LowRank(layer, pair["A"], pair["B"], float(scale)))
