"""A training of seconds for the tests of jobs: its files, and its losses."""

from __future__ import annotations

import shutil
from pathlib import Path

from headwater.train.callbacks.metrics import read_metrics

TRAINING = """
corpus:
  sources: [{kind: jsonl, path: texts.jsonl}]
  tokenizer: {vocab_size: 320}
  max_tokens: 48
  min_tokens: 5
  seq_len: 64
facts: {people: 0, distractors: 0}
model: {layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn_hidden: 48}
train: {steps: 30, global_batch: 4, micro_batch: 2}
checkpoint: {every: 5}
callbacks: {metrics: {tensorboard: false}}
"""

WAITING = "callbacks.extra=[waiting:make]"
"""Of a training in the directory that `write_training` has filled: it stays at a step, see waiting.py."""

WORDS = ["river", "stone", "cloud", "ember", "willow", "harbor", "lantern", "meadow"]


def write_training(directory: Path) -> Path:
    """config.yaml and its documents; returns the configuration."""
    texts = [" ".join(WORDS[(number * k) % 8] for k in range(5, 25)) for number in range(1, 90)]
    lines = "".join(f'{{"text": "{text} {number}"}}\n' for number, text in enumerate(texts))
    (directory / "texts.jsonl").write_text(lines)
    (directory / "config.yaml").write_text(TRAINING)
    shutil.copy(Path(__file__).with_name("waiting.py"), directory)
    return directory / "config.yaml"


def losses(run: str | Path) -> list[tuple[int, float]]:
    """Step and loss of every line of a run's metrics."""
    return [(line["step"], line["loss"]) for line in read_metrics(Path(run, "metrics.jsonl"))]
