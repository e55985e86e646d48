"""The steps of some passages, looked up, against all visits of the ledger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.configs.errors import CorruptError
from headwater.train.callbacks import ledger_lookup
from headwater.train.callbacks.ledger_files import SCHEMA
from headwater.train.callbacks.ledger_lookup import companion, forget_companion, seen_steps, write_companion
from headwater.train.tables import write_table

PASSAGES = 5000


@pytest.fixture
def visits(tmp_path: Path) -> np.ndarray:
    """A ledger of three files, the last unfinished; (passage, step) of its visits, some made twice in a step."""
    rng, made = np.random.default_rng(4), []
    for first, last in ((1, 1000), (1001, 2000), (2001, 2345)):
        steps = np.sort(rng.integers(first, last + 1, 30_011))
        passages = rng.integers(0, PASSAGES - 1, len(steps))  # the last is never seen
        passages[1::1000] = passages[::1000]
        steps[1::1000] = steps[::1000]
        columns = {name: np.zeros(len(steps), dtype=np.int64) for name in SCHEMA.names}
        columns |= {"step": steps, "passage": passages}
        table = pa.Table.from_arrays([pa.array(columns[f.name]).cast(f.type) for f in SCHEMA], schema=SCHEMA)
        write_table(table, tmp_path / f"steps-{first:08d}.parquet")
        if last % 1000 == 0:
            write_companion(tmp_path / f"steps-{first:08d}.parquet")
        made.append(np.stack([passages, steps], axis=1))
    return np.concatenate(made)


def expected(visits: np.ndarray, wanted: list[int]) -> np.ndarray:
    return np.array(sorted({(p, s) for p, s in visits.tolist() if p in wanted}), dtype=np.int64).reshape(-1, 2)


@pytest.mark.parametrize("wanted", [[7], [4990, 0, 17, 17, 2500], [PASSAGES - 1], [], list(range(0, PASSAGES, 3))])
def test_looked_up_steps_are_those_of_all_visits(visits: np.ndarray, tmp_path: Path, wanted: list[int]):
    got = np.stack(seen_steps(tmp_path, np.array(wanted, dtype=np.int64)), axis=1)
    np.testing.assert_array_equal(got, expected(visits, wanted))
    for file in tmp_path.glob("steps-*.parquet"):
        forget_companion(file)
    np.testing.assert_array_equal(np.stack(seen_steps(tmp_path, np.array(wanted, dtype=np.int64)), axis=1), got)


def test_few_row_groups_are_read_and_no_whole_file(visits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read, groups = [], []
    monkeypatch.setattr(ledger_lookup, "read_file", lambda file: read.append(file.name) or SCHEMA.empty_table())
    plain = pq.ParquetFile.read_row_groups

    def counted(self: pq.ParquetFile, wanted: list[int], **options: object) -> pa.Table:
        groups.append((len(wanted), self.num_row_groups))
        return plain(self, wanted, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    seen_steps(tmp_path, np.array([3, 4]))
    assert read == ["steps-00002001.parquet"]  # the unfinished one has no companion
    assert groups == [(1, 4), (1, 4)]


def test_a_companion_of_another_file_is_not_believed_and_a_broken_one_is_named(visits: np.ndarray, tmp_path: Path):
    first, second = tmp_path / "steps-00000001.parquet", tmp_path / "steps-00001001.parquet"
    table = pq.read_table(first)
    write_table(table.slice(0, 20_000), first)
    short = np.concatenate([visits[:20_000], visits[30_011:]])
    got = np.stack(seen_steps(tmp_path, np.array([5, 6])), axis=1)
    np.testing.assert_array_equal(got, expected(short, [5, 6]))
    damaged = bytearray(companion(second).read_bytes())
    damaged[40] ^= 255
    companion(second).write_bytes(damaged)
    with pytest.raises(CorruptError, match=r"by-passage/steps-00001001\.parquet"):
        seen_steps(tmp_path, np.arange(PASSAGES))
