"""Each seed moves its own part of a run and nothing else: told by documents, facts, schedule, ledger and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headwater.train.artifacts import RunDir, fingerprint, read_json
from headwater.train.callbacks.ledger_files import read_ledger
from headwater.train.checkpoint import open_checkpoint
from headwater.train.corpus.injected import described_facts
from headwater.train.facts.families import planted_facts
from headwater.train.facts.settings import FactsSettings

from ..jobs import train

Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def start(prepared: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Builds a run's corpus and trains four updates; returns its parts."""
    fixed = [f"corpus.tokenizer.path={prepared / 'run' / 'tokenizer.json'}", "corpus.max_tokens=96"]

    def start(*seeds: str) -> dict[str, Any]:
        run = RunDir.at(tmp_path_factory.mktemp("run") / "run")
        arguments = [config, f"out={run.path}", *fixed, "train.hard_stop=4", "checkpoint.steps=[0]", *seeds]
        train(arguments, log=run.path.with_name("log"))
        return parts(run)

    return start


@pytest.fixture(scope="module")
def first(start: Start) -> dict[str, Any]:
    return start()


def parts(run: RunDir) -> dict[str, Any]:
    ledger = read_ledger(run.ledger).to_pylist()
    schedule = pq.read_table(run.facts / "schedule.parquet").to_pylist()
    return {
        "documents": [fingerprint(path.read_bytes()) for path in sorted((run.corpus / "base").rglob("*.mds*"))],
        "people": [path.read_bytes() for path in sorted(run.facts.glob("*.jsonl"))],
        "schedule": schedule,
        "order": {(row["step"], row["batch_index"]): row["sequence"] for row in ledger if not row["injected"]},
        "weights": open_checkpoint(run.checkpoint(0)).fingerprint,
        "facts": read_json(run.facts / "origin.json"),
    }


def moved(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Names of the parts in which two runs differ; where injections have taken a whole sequence's place in one of them
    there is no order to compare."""
    both = one["order"].keys() & other["order"].keys()
    assert len(both) > 10
    same = {**other, "order": {**one["order"], **{place: other["order"][place] for place in both}}}
    return {name for name in one if one[name] != same[name]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (["facts.seed=8"], {"people", "schedule", "facts"}),
        (["train.order_seed=8"], {"order"}),
        (["model.seed=8"], {"weights"}),
        (["seed=8"], {"people", "schedule", "facts", "order", "weights"}),
        (["seed=8", "facts.seed=3", "train.order_seed=3", "model.seed=3"], set()),
    ],
    ids=["facts", "order", "weights", "run", "run, and each its own"],
)
def test_each_seed_moves_its_own_part(start: Start, first: dict[str, Any], seeds: list[str], expected: set[str]):
    assert moved(first, start(*seeds)) == expected


@pytest.mark.slow
def test_the_corpus_seed_moves_documents_and_neither_people_nor_weights(start: Start, first: dict[str, Any]):
    assert moved(first, start("corpus.seed=8")) - {"order"} == {"documents"}


def test_facts_planted_before_they_had_a_seed_of_their_own_stay_the_same():
    settings = FactsSettings(people=2)
    described = described_facts(settings, planted_facts(settings, 3))
    assert "seed" not in described
    assert described == described_facts(FactsSettings(people=2, seed=3), planted_facts(settings, 3))
