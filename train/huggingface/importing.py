"""From a Llama directory of Hugging Face to a checkpoint that training can start from.

headwater import models/Llama-2-7b-hf out/start  # then `base: out/start/model.yaml` in a run's configuration
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater.configs.errors import MissingError
from headwater.train.artifacts import atomic_path, read_json, require_empty, write_bytes
from headwater.train.checkpoint_writer import save_weights
from headwater.train.huggingface.families import from_llama, llama_shapes, model_settings
from headwater.train.huggingface.reader import LlamaReader
from headwater.train.settings import ModelSettings


def import_llama(source: str | Path, out: str | Path) -> ModelSettings:
    """Writes a checkpoint directory for `model.init_from`, and model.yaml with the settings that fit it.

    Raises:
        MissingError: no config.json or weights.
        MismatchError: an architecture that is not Llama's, or a tensor of another shape.
        UserError: `out` is not empty.
    """
    source, out = Path(source), Path(out)
    require_empty(out)
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
        if isinstance(config.get("eos_token_id"), int):
            meta["eos_id"] = config["eos_token_id"]
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
