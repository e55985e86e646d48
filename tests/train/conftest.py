"""A corpus of a few thousand tokens, built once, and the settings of the runs that read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwater.train import remote
from headwater.train.remote import Store

from .object_store import ADDRESS, FaultyStore, served

CONFIG = """
seed: 3
corpus:
  sources: [{{kind: jsonl, path: {source}}}]
  tokenizer: {{vocab_size: 384}}
  max_tokens: 80
  min_tokens: 5
  seq_len: 96
facts:
  people: 2
  passages: 2
  distractors: 1
  schedule: {{count: 2}}
model: {{layers: 4, hidden: 32, heads: 4, kv_heads: 2, ffn_hidden: 48, init_std: 0.1}}
optimizer: {{warmup: 2, lr: 3.0e-3}}
train: {{steps: 10, global_batch: 4, micro_batch: 1}}
callbacks:
  probes: {{every: 5}}
  metrics: {{tensorboard: false}}
"""

WORDS = ["river", "stone", "cloud", "ember", "willow", "harbor", "lantern", "meadow", "north", "born", "city", "year"]


def make_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(6, 60))).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="session")
def prepared(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A directory with config.yaml and `run`, a run directory whose corpus is built; tests copy it."""
    return once("training", _prepare)


def _prepare(directory: Path) -> None:
    from headwater.configs import load_config
    from headwater.train.corpus.build import build_corpus
    from headwater.train.settings import PretrainSettings

    source = directory / "texts.jsonl"
    source.write_text(
        "".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(make_texts(60)))
    )
    config = directory / "config.yaml"
    config.write_text(CONFIG.format(source=source))
    build_corpus(load_config(PretrainSettings, config, [f"out={directory / 'run'}"]))


@pytest.fixture(scope="session")
def fresh(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a run directory of its own, with the corpus in it and nothing trained."""

    def make() -> Path:
        out = tmp_path_factory.mktemp("run") / "run"
        shutil.copytree(prepared / "run", out)
        return out

    return make


@pytest.fixture(scope="session")
def config(prepared: Path) -> Path:
    return prepared / "config.yaml"


@pytest.fixture(scope="module")
def world() -> Iterator[Any]:
    """Process groups of a world of one, in the test's own process."""
    from headwater.train import parallel

    yield parallel.start(threads=1)
    parallel.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyStore]:
    """An object store on loopback, and what reaches it."""
    with served() as server:
        yield server


@pytest.fixture
def store(server: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty bucket of it."""
    server.fault = lambda *_: None
    monkeypatch.setattr(remote, "TIMEOUT_S", 10)  # on a machine that has much else to do
    made = Store(ADDRESS)
    made._client.create_bucket(Bucket="runs")
    made.remove(made.names())
    server.asked.clear()
    return made
