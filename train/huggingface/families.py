"""config.json of the families whose models Headwater trains, and its own settings: Llama, Mistral, Qwen2, Qwen3.

Mistral is Llama under another name where its window is no shorter than its context; Qwen2 has biases of queries, keys
and values, Qwen3 norms of each head's queries and keys. Whatever else a configuration asks for is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headwater.configs.errors import ConfigError, CorruptError, MismatchError
from headwater.train.settings import ModelSettings
from headwater.train.tokenizer import TextTokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROPE_DEFAULT = 10000.0


@dataclass(frozen=True, slots=True)
class Family:
    """A `model_type` of Hugging Face.

    Attributes:
        architecture: the class of its causal language model.
        qkv_bias, qk_norm: as in `ModelSettings`.
        biases: what config.json says of biases of the attention; None where it says nothing.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    biases: bool | None = False


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", biases=None),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, biases=None),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True),
}


def family_of(model: ModelSettings) -> str:
    """The family that a model is exported as."""
    return "qwen3" if model.qk_norm else "qwen2" if model.qkv_bias else "llama"


def family_config(
    model: ModelSettings, tokenizer: TextTokenizer | None, eos: int | None, context: int, dtype: str
) -> dict[str, Any]:
    """config.json of a model; `eos` is the token that the model has learnt to end a document with."""
    kind = family_of(model)
    biases = {"attention_bias": False, "mlp_bias": False} if kind == "llama" else {"attention_bias": False}
    return {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn_hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "max_position_embeddings": context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "rope_scaling": rope_config(model),
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "vocab_size": model.vocab_size,
        **(biases if FAMILIES[kind].biases is not None else {"use_sliding_window": False}),
        "bos_token_id": tokenizer.bos_id if tokenizer is not None else None,
        "eos_token_id": eos,
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
    }


def rope_config(model: ModelSettings) -> dict[str, Any] | None:
    """What config.json says of scaled rotary positions."""
    scaling: dict[str, Any] = {"rope_type": model.rope_scaling, "factor": model.rope_factor}
    if model.rope_scaling == "llama3":
        scaling |= {
            "low_freq_factor": model.rope_low,
            "high_freq_factor": model.rope_high,
            "original_max_position_embeddings": model.rope_context,
        }
    return None if model.rope_scaling == "none" else scaling


def model_settings(source: Path, config: Any) -> ModelSettings:
    """Headwater's settings of a configuration; `source` is the file that it stands in.

    Raises:
        CorruptError: it does not describe a model.
        MismatchError, ConfigError: naming what Headwater's model does not have.
    """
    family = require_family(source, config)
    require_sizes(source, config)
    require_plain(source, config, family)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    model = ModelSettings(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=0 if width * heads == hidden else width,
        ffn_hidden=config["intermediate_size"],
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        **rope_settings(source, config),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        init_std=float(config.get("initializer_range", 0.02)),
        vocab_size=config["vocab_size"],
    )
    problems = [replace(problem, key=f"model.{problem.key}") for problem in model.problems()]
    if problems:
        raise ConfigError(problems, f"{source}")
    return model


def rope_settings(source: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The rotary positions of a configuration: `rope_theta` and `rope_scaling`, or both under `rope_parameters`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = config.get("rope_theta") or given.get("rope_theta") or ROPE_DEFAULT
    kind = given.get("rope_type", given.get("type", "default"))
    found: dict[str, Any] = {"rope_base": float(base)}
    if kind == "default":
        return found
    names = {"rope_factor": "factor"}
    if kind == "llama3":
        names |= {"rope_low": "low_freq_factor", "rope_high": "high_freq_factor"}
        names["rope_context"] = "original_max_position_embeddings"
    elif kind != "linear":
        raise refusal(source, "rope_scaling", kind, "none, linear or llama3")
    lacking = [name for name in names.values() if type(given.get(name)) not in (int, float)]
    if lacking:
        raise CorruptError(
            f"{source}: rope_scaling is incomplete", got=given, expected=f"numbers under {lacking}", fix="restore it"
        )
    found |= {ours: float(given[theirs]) for ours, theirs in names.items()}
    if "rope_context" in found:
        found["rope_context"] = int(found["rope_context"])
    return {**found, "rope_scaling": kind}


def refusal(source: Path, key: str, got: Any, expected: Any) -> MismatchError:
    return MismatchError(
        f"{source}: {key} cannot be taken over",
        got=got,
        expected=expected,
        fix=f"import a model of the plain architecture of {', '.join(FAMILIES)}",
    )


def require_family(source: Path, config: Any) -> Family:
    """The family of a configuration; refuses what is none, or of another family."""
    if not isinstance(config, dict):
        raise CorruptError(
            f"{source} is not a model's configuration",
            got=type(config).__name__,
            expected="the config.json of a Llama model",
            fix="restore it",
        )
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise refusal(source, "model_type", kind, " or ".join(FAMILIES))
    return FAMILIES[kind]


def require_plain(source: Path, config: dict[str, Any], family: Family) -> None:
    """Refuses what goes beyond its family's plain architecture."""
    for key, plain in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}.items():
        got = config.get(key, plain)
        if got != plain and not (got is None and plain is False):
            raise refusal(source, key, got, plain)
    window, context = config.get("sliding_window"), config.get("max_position_embeddings")
    slides = bool(window) and config.get("use_sliding_window", family.architecture.startswith("Mistral"))
    if slides and not (type(context) is int and type(window) is int and window >= context):
        raise refusal(source, "sliding_window", window, f"none, or no shorter than the context of {context} tokens")


def require_sizes(source: Path, config: dict[str, Any]) -> None:
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    wrong = {key: config.get(key) for key in sizes if type(config.get(key)) is not int or config[key] < 1}
    width = config.get("head_dim")
    if width is not None and (type(width) is not int or width < 1):
        wrong["head_dim"] = width
    if wrong:
        raise CorruptError(
            f"{source} does not describe a model",
            got=", ".join(f"{key} = {value}" for key, value in wrong.items()),
            expected="positive whole numbers",
            fix="restore it",
        )
