"""A small corpus of made-up text, built once, and the settings that make it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.settings import SourceSettings
from headwater.train.settings import PretrainSettings

WORDS = (
    "river",
    "stone",
    "cloud",
    "ember",
    "willow",
    "harbor",
    "lantern",
    "meadow",
    "north",
    "signal",
    "quiet",
    "orchard",
)


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 30 sentences."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        sentences = [" ".join(rng.choice(WORDS, rng.integers(3, 12))).capitalize() for _ in range(rng.integers(1, 31))]
        texts.append(". ".join(sentences) + ".")
    return texts


def write_jsonl(path: Path, texts: list[str], prefix: str = "doc") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": f"{prefix}-{n}", "text": text}) + "\n" for n, text in enumerate(texts)))


def settings_for(out: Path, source: Path, *, people: int = 6) -> PretrainSettings:
    """A small run: passages of at most 61 tokens in sequences of 97, facts of a few people, 40 steps of 3 rows."""
    cfg = PretrainSettings(out=str(out))
    cfg.corpus.sources = [SourceSettings(kind="jsonl", path=str(source))]
    cfg.corpus.tokenizer.vocab_size = 704
    cfg.corpus.max_tokens, cfg.corpus.min_tokens, cfg.corpus.seq_len = 61, 5, 97
    cfg.corpus.shard_tokens, cfg.corpus.end_token = 3000, False
    cfg.facts.people, cfg.facts.distractors, cfg.facts.passages = people, 2 if people else 0, 4
    cfg.facts.schedule.count = 3
    cfg.train.steps, cfg.train.global_batch = 40, 3
    return cfg


@pytest.fixture(scope="session")
def built(once: Callable[[str, Callable[[Path], None]], Path]) -> PretrainSettings:
    """A built run; tests only read it."""

    def settings(directory: Path) -> PretrainSettings:
        return settings_for(directory / "run", directory / "texts.jsonl")

    def make(directory: Path) -> None:
        write_jsonl(directory / "texts.jsonl", make_texts(90))
        build_corpus(settings(directory))

    return settings(once("stream", make))


@pytest.fixture
def run(built: PretrainSettings) -> RunDir:
    return RunDir.at(built.out)
