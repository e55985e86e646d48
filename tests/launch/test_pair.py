"""A minimal pair: what the second run lacks, and that nothing else differs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from headwater.configs.errors import MismatchError, MissingError, UserError
from headwater.launch.pair import make_pair
from headwater.train.callbacks.ledger_files import COMPARED, ledger_difference

from .whole import headwater


def seen(run: Path) -> list[tuple]:
    return [tuple(row[key] for key in COMPARED) for row in pq.read_table(run / "ledger").to_pylist()]


@pytest.mark.slow
def test_a_pair_without_injections_and_one_without_a_fact(here: Path, capfd: pytest.CaptureFixture[str]):
    status, said = headwater("pair", "run", "plain")
    assert status == 0, said
    whole, plain = seen(here / "run"), seen(here / "plain")
    injected = [visit for visit in whole if visit[-1]]
    assert injected
    assert plain == [visit for visit in whole if not visit[-1]], "not even what gave way to an injection comes back"
    found = json.loads((here / "plain/difference.json").read_text())
    assert found == {"dropped": len(injected), "injected": len(injected), "elsewhere": 0}
    losses = [
        [json.loads(line)["loss"] for line in (here / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("run", "plain")
    ]
    assert losses[0] != losses[1]
    facts = [json.loads(line) for line in (here / "run/facts/facts.jsonl").read_text().splitlines()]
    found = make_pair(here / "run", here / "less", fact=facts[0]["fact_id"])
    assert 0 < found["dropped"] < len(injected)
    # Nothing left out: the same losses to the bit.
    (here / "empty.txt").write_text("\n")
    assert make_pair(here / "run", here / "same", exclude=here / "empty.txt")["dropped"] == 0
    same = [json.loads(line)["loss"] for line in (here / "same/metrics.jsonl").read_text().splitlines()]
    assert same == losses[0]
    with pytest.raises(MismatchError, match="another pair"):
        make_pair(here / "run", here / "plain", fact=facts[0]["fact_id"])
    with pytest.raises(UserError, match="is there already"):
        make_pair(here / "run", here / "hf")
    with pytest.raises(MissingError, match="no fact nobody"):
        make_pair(here / "run", here / "other", fact="nobody")
    assert not (here / "other").exists()


def test_a_run_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(MissingError, match="no run directory"):
        make_pair(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_ledgers_differ_by_visits_whatever_their_place_in_a_sequence(tmp_path: Path):
    from headwater.train.callbacks.ledger_files import SCHEMA

    def write(name: str, file: int, visits: list[tuple[int, int, int]]) -> None:
        import pyarrow as pa

        (tmp_path / name).mkdir(exist_ok=True)
        rows = [
            {"step": s, "batch_index": 0, "sequence": 7, "passage": p, "offset": o, "length": 5, "injected": p > 8}
            for s, p, o in visits
        ]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / name / f"steps-{file:08d}.parquet")

    write("a", 1, [(1, 3, 0), (1, 3, 5), (2, 9, 0), (2, 4, 5)])
    write("a", 1001, [(1001, 3, 0)])
    write("b", 1, [(1, 3, 0), (2, 4, 0), (2, 5, 5)])
    only_a, only_b = ledger_difference(tmp_path / "a", tmp_path / "b")
    assert only_a.tolist() == [[1, 0, 7, 3, 5, 0], [2, 0, 7, 9, 5, 1], [1001, 0, 7, 3, 5, 0]]
    assert only_b.tolist() == [[2, 0, 7, 5, 5, 0]]
    assert all(len(each) == 0 for each in ledger_difference(tmp_path / "a", tmp_path / "a"))
    assert isinstance(only_a, np.ndarray)
