"""The same numbers under other names: what Headwater's parameters are called in Hugging Face's Llama and its kin.

Megatron stacks the query, key and value rows of each key-value head ([q..q k v] per head, H heads, G key-value heads, D
width of a head) and the gate over the up matrix; Hugging Face keeps them apart. Rotary positions pair the first half of
a head with its second half in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from headwater.train.checkpoint import Checkpoint
from headwater.train.settings import ModelSettings

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
_HEAD_NORMS = {
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
}
_FC1 = "mlp.linear_fc1.weight"
_QKV = {
    f"self_attention.linear_qkv.{what}": [f"self_attn.{part}_proj.{what}" for part in "qkv"]
    for what in ("weight", "bias")
}
_GATED = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]


def split_qkv(qkv: Tensor, model: ModelSettings) -> list[Tensor]:
    """Megatron's [(H + 2 G) D, ...] as q [H D, ...], k and v [G D, ...]: weights or biases."""
    rest, shared = qkv.shape[1:], model.heads // model.kv_heads
    grouped = qkv.view(model.kv_heads, shared + 2, model.head_width, *rest)
    parts = grouped[:, :shared], grouped[:, shared], grouped[:, shared + 1]
    return [part.reshape(-1, *rest) for part in parts]


def join_qkv(q: Tensor, k: Tensor, v: Tensor, model: ModelSettings) -> Tensor:
    """The inverse of `split_qkv`."""
    rest = q.shape[1:]
    parts = [x.view(model.kv_heads, -1, model.head_width, *rest) for x in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def to_llama(checkpoint: Checkpoint, model: ModelSettings) -> Iterator[tuple[str, Tensor]]:
    """Every weight under Hugging Face's name, float32, one at a time."""
    for name in checkpoint.names:
        tensor = checkpoint.tensor("weight", name)
        if name in _SAME_NAME:
            yield _SAME_NAME[name], tensor
            continue
        _, _, number, rest = name.split(".", 3)
        prefix = f"model.layers.{number}."
        if rest in _QKV:
            named = zip(_QKV[rest], split_qkv(tensor, model), strict=True)
        elif rest == _FC1:
            named = zip(_GATED, tensor.chunk(2), strict=True)
        else:
            named = zip([{**_SAME_IN_LAYER, **_HEAD_NORMS}[rest]], [tensor], strict=True)
        for part, value in named:
            yield prefix + part, value


def from_llama(read: Any, model: ModelSettings) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its canonical name, float32. `read` gives the tensor of a Hugging Face name."""
    for ours, theirs in _SAME_NAME.items():
        if ours != "output_layer.weight" or not model.tie_embeddings:
            yield ours, read(theirs)
    for number in range(model.layers):
        ours, theirs = f"decoder.layers.{number}.", f"model.layers.{number}."
        for one, other in {**_SAME_IN_LAYER, **(_HEAD_NORMS if model.qk_norm else {})}.items():
            yield ours + one, read(theirs + other)
        for name, parts in _QKV.items():
            if model.qkv_bias or name.endswith("weight"):
                q, k, v = (read(theirs + part) for part in parts)
                yield ours + name, join_qkv(q, k, v, model)
        yield ours + _FC1, torch.cat([read(theirs + part) for part in _GATED])


def llama_shapes(model: ModelSettings) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that `from_llama` reads, by Hugging Face's name."""
    hidden, ffn = model.hidden, model.ffn_hidden
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (hidden,)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = (model.vocab_size, hidden)
    rows = {"q_proj": model.query_width, "k_proj": model.key_width, "v_proj": model.key_width}
    for number in range(model.layers):
        prefix = f"model.layers.{number}."
        shapes |= {f"{prefix}self_attn.{name}.weight": (count, hidden) for name, count in rows.items()}
        if model.qkv_bias:
            shapes |= {f"{prefix}self_attn.{name}.bias": (count,) for name, count in rows.items()}
        if model.qk_norm:
            shapes |= {f"{prefix}self_attn.{name}_norm.weight": (model.head_width,) for name in "qk"}
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, model.query_width)
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, ffn)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
    return shapes
