"""A Llama model of Hugging Face as it lies on disk: its configuration and its tensors, each checked as it is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headwater.configs.errors import ConfigError, CorruptError, MismatchError, MissingError
from headwater.train.artifacts import read_json
from headwater.train.settings import ModelSettings


def model_settings(source: Path, config: dict[str, Any]) -> ModelSettings:
    """Headwater's settings of a Llama configuration.

    Raises:
        CorruptError: it does not describe a model.
        MismatchError, ConfigError: naming what Headwater's model does not have.
    """
    require_architecture(source, config)
    require_sizes(source, config)
    rope = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 10000.0
    model = ModelSettings(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        ffn_hidden=config["intermediate_size"],
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        rope_base=float(rope),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        init_std=float(config.get("initializer_range", 0.02)),
        vocab_size=config["vocab_size"],
    )
    problems = [replace(problem, key=f"model.{problem.key}") for problem in model.problems()]
    if problems:
        raise ConfigError(problems, f"{source / 'config.json'}")
    return model


def require_architecture(source: Path, config: Any) -> None:
    """Refuses what is not a configuration, or not of the plain Llama architecture."""
    if not isinstance(config, dict):
        raise CorruptError(
            f"{source / 'config.json'} is not a model's configuration",
            got=type(config).__name__,
            expected="the config.json of a Llama model",
            fix="restore it",
        )
    wanted = {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
    }
    if type(config.get("hidden_size")) is int and type(config.get("num_attention_heads")) is int:
        wanted["head_dim"] = config["hidden_size"] // max(config["num_attention_heads"], 1)
    for key, value in wanted.items():
        got = config.get(key) or (value if key in ("head_dim", "hidden_act") else config.get(key))
        if got != value and not (got is None and value is False):
            raise MismatchError(
                f"{source / 'config.json'}: {key} cannot be taken over",
                got=got,
                expected=value,
                fix="import a Llama model of the plain architecture",
            )


def require_sizes(source: Path, config: dict[str, Any]) -> None:
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    wrong = {key: config.get(key) for key in sizes if type(config.get(key)) is not int or config[key] < 1}
    if wrong:
        raise CorruptError(
            f"{source / 'config.json'} does not describe a model",
            got=", ".join(f"{key} = {value}" for key, value in wrong.items()),
            expected="positive whole numbers",
            fix="restore it",
        )


def llama_shapes(model: ModelSettings) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that `from_llama` reads, by Hugging Face's name."""
    width, hidden, ffn = model.hidden // model.heads, model.hidden, model.ffn_hidden
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (hidden,)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = (model.vocab_size, hidden)
    rows = {"q_proj": model.heads * width, "k_proj": model.kv_heads * width, "v_proj": model.kv_heads * width}
    for number in range(model.layers):
        prefix = f"model.layers.{number}."
        shapes |= {f"{prefix}self_attn.{name}.weight": (count, hidden) for name, count in rows.items()}
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, model.heads * width)
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, ffn)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
    return shapes


class LlamaReader:
    """Tensors of a directory of safetensors files, by name, each of its expected shape."""

    def __init__(self, directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self.directory, self.shapes = directory, shapes
        index = directory / "model.safetensors.index.json"
        if index.exists():
            content = read_json(index)
            places = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(places, dict):
                raise CorruptError(f"{index} lists no tensors", expected="a weight_map", fix="restore it")
            self.places: dict[str, str] = places
        elif (directory / "model.safetensors").exists():
            with self._open("model.safetensors") as file:
                self.places = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise MissingError(
                f"{directory} has no weights",
                expected="model.safetensors, or its index",
                fix="save the model with save_pretrained(safe_serialization=True)",
            )

    def tensor(self, name: str) -> Tensor:
        if name not in self.places:
            raise MismatchError(
                f"{self.directory} has no tensor {name}",
                expected="every tensor of the Llama model that config.json describes",
                fix="download or save the model again",
            )
        with self._open(self.places[name]) as file:
            try:
                tensor = file.get_tensor(name)
            except SafetensorError as error:
                what = f"{self.directory / self.places[name]} does not hold {name}"
                raise CorruptError(what, got=error, fix="download or save the model again") from None
        if tuple(tensor.shape) != self.shapes[name]:
            raise MismatchError(
                f"{self.directory}: {name} has another shape than config.json says",
                got=tuple(tensor.shape),
                expected=self.shapes[name],
                fix="restore the config.json of these weights",
            )
        return tensor.to(torch.float32)

    def _open(self, name: str) -> Any:
        path = self.directory / name
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CorruptError(
                f"{path} cannot be read",
                got=error,
                expected="a safetensors file",
                fix="download the model again, or save it with save_pretrained(safe_serialization=True)",
            ) from None
