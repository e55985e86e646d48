"""The ledger's files, read. They hold a fixed number of steps each, in order of step, batch index and offset, so that a
run that was interrupted ends with the same files as one that was not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from headwater.configs.errors import CorruptError
from headwater.train.tables import read_table

STEPS_PER_FILE = 1000
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("batch_index", pa.int32()),
        ("sequence", pa.int64()),
        ("passage", pa.int64()),
        ("offset", pa.int32()),
        ("length", pa.int32()),
        ("injected", pa.bool_()),
    ]
)


def read_ledger(directory: Path) -> pa.Table:
    """The ledger of a run, in order of step, batch index and offset."""
    files = sorted(directory.glob("steps-*.parquet"))
    return pa.concat_tables(map(read_file, files)) if files else SCHEMA.empty_table()


COMPARED = ("step", "batch_index", "sequence", "passage", "length", "injected")
"""What a visit is; where it stands in its sequence no token can see."""


def ledger_difference(one: Path, other: Path) -> tuple[np.ndarray, np.ndarray]:
    """Visits that are in one ledger alone, and those in the other alone: int64 [n, 6] each, columns as of COMPARED, in
    order. One file of each is in memory at a time.
    """
    names = sorted({file.name for directory in (one, other) for file in directory.glob("steps-*.parquet")})
    only: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name in names:
        tables = [read_file(path / name) if (path / name).exists() else SCHEMA.empty_table() for path in (one, other)]
        rows = [np.stack([np.asarray(table[key]).astype(np.int64) for key in COMPARED], axis=1) for table in tables]
        visits, place_n = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        balance = np.zeros(len(visits), dtype=np.int64)
        np.add.at(balance, place_n.reshape(-1), np.repeat([1, -1], [len(rows[0]), len(rows[1])]))
        only[0].append(visits[balance > 0])
        only[1].append(visits[balance < 0])
    empty = [np.empty((0, len(COMPARED)), dtype=np.int64)]
    return np.concatenate(empty + only[0]), np.concatenate(empty + only[1])


def read_file(file: Path) -> pa.Table:
    """One file of a ledger; an older one calls the batch index `row`."""
    table = read_table(file, fix="restore it; without it nothing says what was seen in these steps")
    names = {"batch_index" if name == "row" else name for name in table.column_names}
    if not names.issuperset(SCHEMA.names):
        raise CorruptError(f"{file} is no ledger", got=table.column_names, expected=SCHEMA.names, fix="restore it")
    return table.rename_columns(["batch_index" if name == "row" else name for name in table.column_names])
