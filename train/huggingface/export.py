"""Llama checkpoints of Hugging Face, both ways.

    headwater export runs/a out/a-llama              # LlamaForCausalLM.from_pretrained("out/a-llama"): the same logits
    headwater import models/Llama-2-7b-hf out/start  # then `base: out/start/model.yaml` in a run's configuration

The same numbers under other names. Megatron stacks the query, key and value rows of each key-value head ([q..q k v] per
head, H heads, G key-value heads, D width of a head) and the gate over the up matrix; Hugging Face keeps them apart.
Rotary positions pair the first half of a head with its second half in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from headwater.configs.errors import MissingError, UserError
from headwater.train.artifacts import RunDir, atomic_path, read_json, write_bytes, write_json
from headwater.train.checkpoint import Checkpoint, newest, open_checkpoint
from headwater.train.checkpoint_writer import save_weights
from headwater.train.huggingface.llama import LlamaReader, llama_shapes, model_settings
from headwater.train.settings import ModelSettings
from headwater.train.tokenizer import TextTokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FILE_BYTES = 5 << 30
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


def find_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """A checkpoint directory itself, or the newest (or the given) one of a run.

    Raises:
        MissingError: there is none.
    """
    path = Path(path)
    if step is None and (path / "checkpoint.json").exists():
        return open_checkpoint(path)
    run = RunDir.at(path)
    found = newest(run.checkpoints) if step is None else open_checkpoint(run.checkpoint(step))
    if found is None:
        raise MissingError(
            f"{path} has no checkpoint",
            expected="a run directory, or a directory with checkpoint.json",
            fix="run `headwater pretrain` first",
        )
    return found


def export_llama(source: str | Path, out: str | Path, *, step: int | None = None, dtype: str = "fp32") -> Checkpoint:
    """Writes a directory that `LlamaForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    Raises:
        MissingError, CorruptError: no whole checkpoint.
        UserError: `out` is not empty, or `dtype` is unknown.
    """
    out = Path(out)
    _require_empty(out)
    if dtype not in DTYPES:
        raise UserError("there is no such number format", got=dtype, expected=" or ".join(DTYPES))
    checkpoint = find_checkpoint(source, step)
    checkpoint.verify()
    model = ModelSettings(**checkpoint.meta["model"])
    tokenizer, context = _tokenizer_of(checkpoint)
    with atomic_path(out) as part:
        part.mkdir()
        _write_shards(part, ((name, tensor.to(DTYPES[dtype])) for name, tensor in to_llama(checkpoint, model)))
        write_json(part / "config.json", llama_config(model, tokenizer, context, dtype))
        if tokenizer is not None:
            _write_tokenizer(part, tokenizer, context)
    return checkpoint


def llama_config(model: ModelSettings, tokenizer: TextTokenizer | None, context: int, dtype: str) -> dict[str, Any]:
    """config.json of a `LlamaForCausalLM`."""
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
        "eos_token_id": bos,
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
    }


def _tokenizer_of(checkpoint: Checkpoint) -> tuple[TextTokenizer | None, int]:
    """The tokenizer that lies in the checkpoint or its run, and the longest passage that the model was trained on."""
    run = RunDir.at(checkpoint.path.parent.parent)
    path = next((p for p in (checkpoint.path / "tokenizer.json", run.tokenizer) if p.exists()), None)
    tokenizer, context = None, int(checkpoint.meta.get("context", 2048))
    if path is not None:
        tokenizer = TextTokenizer.from_file(path, checkpoint.meta.get("bos", ""))
    manifest = run.corpus / "base" / "manifest.json"
    if manifest.exists():
        context = int(read_json(manifest)["max_tokens"])
    return tokenizer, context


def _write_tokenizer(directory: Path, tokenizer: TextTokenizer, context: int) -> None:
    from tokenizers import Tokenizer, processors

    own = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    # Every passage begins with this token in training, so every text does there too.
    own.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos} $A", pair=f"{tokenizer.bos} $A $B", special_tokens=[(tokenizer.bos, tokenizer.bos_id)]
    )
    write_bytes(directory / "tokenizer.json", own.to_str(pretty=True).encode())
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos,
            "eos_token": tokenizer.bos,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
        },
    )


def _write_shards(directory: Path, named: Iterator[tuple[str, Tensor]]) -> None:
    """model.safetensors, or numbered files of a few GiB with an index."""
    files: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def put() -> None:
        save_file(held, directory / f"part-{len(files)}", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, tensor in named:
        if held and sum(each.nbytes for each in held.values()) + tensor.nbytes > _FILE_BYTES:
            put()
        held[name] = tensor.contiguous()
        total += tensor.nbytes
    put()
    if len(files) == 1:
        (directory / "part-0").rename(directory / "model.safetensors")
        return
    places = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (directory / f"part-{number}").rename(directory / file)
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(directory / "model.safetensors.index.json", index)


def import_llama(source: str | Path, out: str | Path) -> ModelSettings:
    """Writes a checkpoint directory for `model.init_from`, and model.yaml with the settings that fit it.

    Raises:
        MissingError: no config.json or weights.
        MismatchError: an architecture that is not Llama's, or a tensor of another shape.
        UserError: `out` is not empty.
    """
    source, out = Path(source), Path(out)
    _require_empty(out)
    if not source.is_dir():
        raise MissingError(
            f"{source} is not a directory", expected="a Llama model saved by save_pretrained", fix="correct the path"
        )
    config = read_json(source / "config.json", made_by="save_pretrained")
    model = model_settings(source, config)
    reader = LlamaReader(source, llama_shapes(model))
    meta: dict[str, Any] = {"step": 0, "updates": 0, "model": asdict(model), "source": str(source)}
    meta["context"] = config.get("max_position_embeddings", 2048)
    with atomic_path(out) as part:
        part.mkdir()
        if (source / "tokenizer.json").exists():
            tokenizer_path = source / "tokenizer.json"
            write_bytes(part / "tokenizer.json", tokenizer_path.read_bytes())
            meta["bos"] = _bos_of(source)
        save_weights(part, from_llama(reader.tensor, model), meta)
        _write_settings(part, out, model, meta)
    return model


def _bos_of(source: Path) -> str:
    path = source / "tokenizer_config.json"
    token = read_json(path).get("bos_token") if path.exists() else None
    return (token.get("content") if isinstance(token, dict) else token) or ""


def _write_settings(part: Path, out: Path, model: ModelSettings, meta: dict[str, Any]) -> None:
    """model.yaml, a base for the configuration of a run that starts from these weights."""
    settings = {**asdict(model), "init_from": str(out.resolve())}
    lines = ["# The settings of these weights: `base: " + str(out / "model.yaml") + "` in a run's configuration."]
    lines += ["model:", *(f"  {key}: {json.dumps(value)}" for key, value in settings.items())]
    if (part / "tokenizer.json").exists():
        path = json.dumps(str(out.resolve() / "tokenizer.json"))
        lines += ["corpus:", "  tokenizer:", f"    path: {path}", f"    bos: {json.dumps(meta['bos'])}"]
    write_bytes(part / "model.yaml", ("\n".join(lines) + "\n").encode())


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already", expected="a new or empty directory", fix="choose another one")
