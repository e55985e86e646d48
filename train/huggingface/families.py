"""The same numbers under other names: what Headwater's parameters are called by each family of Hugging Face's models.

Megatron stacks the query, key and value rows of each key-value head ([q..q k v] per head, H heads, G key-value heads, D
width of a head) and the gate over the up matrix; Hugging Face keeps them apart. Rotary positions pair the first half of
a head with its second half in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwater.configs.errors import ConfigError, CorruptError, MismatchError
from headwater.train.checkpoint import Checkpoint
from headwater.train.settings import ModelSettings
from headwater.train.tokenizer import TextTokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SAME_NAME = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_SAME_IN_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_QKV, _FC1 = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
_ATTENTION = [f"self_attn.{part}_proj.weight" for part in "qkv"]
_GATED = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]


def split_qkv(qkv: Tensor, model: ModelSettings) -> list[Tensor]:
    """Megatron's [(H + 2 G) D, hidden] as q [H D, hidden], k and v [G D, hidden]."""
    width, shared = model.hidden // model.heads, model.heads // model.kv_heads
    grouped = qkv.view(model.kv_heads, shared + 2, width, model.hidden)
    parts = grouped[:, :shared], grouped[:, shared], grouped[:, shared + 1]
    return [part.reshape(-1, model.hidden) for part in parts]


def join_qkv(q: Tensor, k: Tensor, v: Tensor, model: ModelSettings) -> Tensor:
    """The inverse of `split_qkv`."""
    width = model.hidden // model.heads
    parts = [x.view(model.kv_heads, -1, width, model.hidden) for x in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, model.hidden)


def to_llama(checkpoint: Checkpoint, model: ModelSettings) -> Iterator[tuple[str, Tensor]]:
    """Every weight under Hugging Face's name, float32, one at a time."""
    for name in checkpoint.names:
        tensor = checkpoint.tensor("weight", name)
        if name in _SAME_NAME:
            yield _SAME_NAME[name], tensor
            continue
        _, _, number, rest = name.split(".", 3)
        prefix = f"model.layers.{number}."
        if rest == _QKV:
            named = zip(_ATTENTION, split_qkv(tensor, model), strict=True)
        elif rest == _FC1:
            named = zip(_GATED, tensor.chunk(2), strict=True)
        else:
            named = zip([_SAME_IN_LAYER[rest]], [tensor], strict=True)
        for part, value in named:
            yield prefix + part, value


def from_llama(read: Any, model: ModelSettings) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its canonical name, float32. `read` gives the tensor of a Hugging Face name."""
    for ours, theirs in _SAME_NAME.items():
        if ours != "output_layer.weight" or not model.tie_embeddings:
            yield ours, read(theirs)
    for number in range(model.layers):
        ours, theirs = f"decoder.layers.{number}.", f"model.layers.{number}."
        for one, other in _SAME_IN_LAYER.items():
            yield ours + one, read(theirs + other)
        q, k, v = (read(theirs + part) for part in _ATTENTION)
        yield ours + _QKV, join_qkv(q, k, v, model)
        yield ours + _FC1, torch.cat([read(theirs + part) for part in _GATED])


def llama_config(
    model: ModelSettings, tokenizer: TextTokenizer | None, eos: int | None, context: int, dtype: str
) -> dict[str, Any]:
    """config.json of a `LlamaForCausalLM`; `eos` is the token that the model has learnt to end a document with."""
    bos = tokenizer.bos_id if tokenizer is not None else None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn_hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.hidden // model.heads,
        "max_position_embeddings": context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "vocab_size": model.vocab_size,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
    }


def model_settings(source: Path, config: dict[str, Any]) -> ModelSettings:
    """Headwater's settings of a Llama configuration; `source` is the file that it stands in.

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
        raise ConfigError(problems, f"{source}")
    return model


def require_architecture(source: Path, config: Any) -> None:
    """Refuses what is not a configuration, or not of the plain Llama architecture."""
    if not isinstance(config, dict):
        raise CorruptError(
            f"{source} is not a model's configuration",
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
                f"{source}: {key} cannot be taken over",
                got=got,
                expected=value,
                fix="import a Llama model of the plain architecture",
            )


def require_sizes(source: Path, config: dict[str, Any]) -> None:
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    wrong = {key: config.get(key) for key in sizes if type(config.get(key)) is not int or config[key] < 1}
    if wrong:
        raise CorruptError(
            f"{source} does not describe a model",
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
