"""One of everything that commands read, tiny, and the command itself in the tests' own process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from headwater.launch.cli.commands import app

CONFIG = """
seed: 3
corpus:
  sources: [{kind: jsonl, path: texts.jsonl}]
  tokenizer: {vocab_size: 384}
  max_tokens: 80
  min_tokens: 5
  seq_len: 96
facts: {people: 2, passages: 2, distractors: 1, schedule: {count: 2}}
model: {layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn_hidden: 48}
train: {steps: 6, hard_stop: 4, global_batch: 4}
checkpoint: {every: 2}
callbacks: {probes: {every: 2}, metrics: {tensorboard: false}}
"""
WORDS = ["river", "stone", "cloud", "ember", "willow", "harbor", "lantern", "meadow", "north", "city"]
INDEX = ["projection.dims=4", "codecs=[sign,fp32]", "shard_rows=32", "corpus.max_tokens=64"]


def headwater(*arguments: str) -> tuple[int, str]:
    """Exit status and everything printed to standard error."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def make_whole(directory: Path) -> None:
    """config.yaml, texts.jsonl, a run that stands at step 4 of 6, its last checkpoint as a Hugging Face model, an index
    of each, and a trace."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(6, 40))) for _ in range(60)]
    lines = [json.dumps({"id": f"d{number}", "text": text}) for number, text in enumerate(texts)]
    (directory / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "config.yaml").write_text(CONFIG)
    commands = (
        ["pretrain", "config.yaml", "out=run"],
        ["export", "run", "hf"],
        ["index", "index/run", "model.run=run", *INDEX],
        [
            "index",
            "index/hf",
            "model.path=hf",
            "corpus.path=texts.jsonl",
            "out=hf-index",
            "corpus.max_tokens=40",
            *INDEX,
        ],
        [*TRACE, "out=run/traces/t.jsonl"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for command in commands:
            status, said = headwater(*command)
            assert status == 0, said


TRACE = ["trace", "trace/default", "index=run/index/headwater", "queries=run/facts/probes.jsonl", "top_k=3"]
"""What is asked in tests."""


def tree(directory: Path) -> dict[str, str]:
    """Every directory, and every file with its hash."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
        for path in directory.rglob("*")
    }
