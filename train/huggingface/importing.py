"""From a Llama directory of Hugging Face, or a GGUF file, to a checkpoint that training can start from.

headwater import models/Llama-2-7b-hf out/start  # then `base: out/start/model.yaml` in a run's configuration
headwater import models/llama-2-7b.Q8_0.gguf out/start
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from headwater.configs.errors import MissingError
from headwater.train.artifacts import atomic_path, read_json, require_empty, write_bytes
from headwater.train.checkpoint_writer import save_weights
from headwater.train.huggingface.families import model_settings
from headwater.train.huggingface.gguf import SUFFIX, GgufReader
from headwater.train.huggingface.names import from_llama, llama_shapes
from headwater.train.huggingface.reader import LlamaReader
from headwater.train.settings import ModelSettings


def import_llama(source: str | Path, out: str | Path) -> ModelSettings:
    """Writes a checkpoint directory for `model.init_from`, and model.yaml with the settings that fit it.

    Args:
        source: a directory saved by `save_pretrained`, or a GGUF file, whose weights may be quantised.

    Raises:
        MissingError: no config.json or weights.
        MismatchError: an architecture that is not Llama's, or a tensor of another shape.
        UserError: `out` is not empty.
    """
    source, out = Path(source), Path(out)
    require_empty(out)
    if source.suffix == SUFFIX:
        file = GgufReader(source)
        model = model_settings(source, file.config)
        shapes = llama_shapes(model)
        _write(out, source, model, file.config, lambda name: file.tensor(name, shapes[name]), file.tokenizer())
        return model
    if not source.is_dir():
        raise MissingError(
            f"{source} is not a directory",
            expected="a Llama model saved by save_pretrained, or a .gguf file",
            fix="correct the path",
        )
    config = read_json(source / "config.json", made_by="save_pretrained")
    model = model_settings(source / "config.json", config)
    tokenizer = source / "tokenizer.json"
    has = (tokenizer.read_bytes(), _bos_of(source)) if tokenizer.exists() else None
    _write(out, source, model, config, LlamaReader(source, llama_shapes(model)).tensor, has)
    return model


def _write(
    out: Path,
    source: Path,
    model: ModelSettings,
    config: dict[str, Any],
    read: Callable[[str], Tensor],
    tokenizer: tuple[bytes, str] | None,
) -> None:
    """Writes the directory whole.

    Args:
        read: gives the tensor of a Hugging Face name.
        tokenizer: tokenizer.json, and the beginning token.
    """
    meta: dict[str, Any] = {"step": 0, "updates": 0, "model": asdict(model), "source": str(source)}
    meta["context"] = config.get("max_position_embeddings", 2048)
    with atomic_path(out) as part:
        part.mkdir()
        if tokenizer is not None:
            write_bytes(part / "tokenizer.json", tokenizer[0])
            meta["bos"] = tokenizer[1]
        if isinstance(config.get("eos_token_id"), int):
            meta["eos_id"] = config["eos_token_id"]
        save_weights(part, from_llama(read, model), meta)
        _write_settings(part, out, model, meta)


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
