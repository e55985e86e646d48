"""The ledger: which passage was in which sequence at which step.

Files hold a fixed number of steps each, so that a run that was interrupted ends with the same files as one that was
not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist

from headwater.configs.errors import CorruptError
from headwater.train import parallel
from headwater.train.artifacts import atomic_path, remove
from headwater.train.callbacks.base import Callback, Training
from headwater.train.engine import StepResult
from headwater.train.stream.stream import TrainingSequence
from headwater.train.tables import read_table, write_table

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


def read_ledger(directory: Path, passages: np.ndarray | None = None) -> pa.Table:
    """The ledger of a run, in order of step, batch index and offset.

    Args:
        passages: keep the visits of these alone, int64 [n]; one file at a time is in memory, and what is kept.
    """
    wanted = pa.array(passages, pa.int64()) if passages is not None else None

    def kept(file: Path) -> pa.Table:
        table = read_file(file)
        return table if wanted is None else table.filter(pc.is_in(table["passage"], value_set=wanted))

    files = sorted(directory.glob("steps-*.parquet"))
    return pa.concat_tables(map(kept, files)) if files else SCHEMA.empty_table()


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


class Ledger(Callback):
    name = "ledger"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pending: list[np.ndarray] = []

    def start(self, trainer: Training, step: int) -> None:
        """Forgets what an interrupted run noted after the checkpoint that this one goes on from."""
        if not trainer.world.is_main:
            return
        for file in sorted(self.directory.glob("steps-*.parquet")):
            first = int(file.stem.split("-")[1])
            if first > step:
                remove(file)
            elif first + STEPS_PER_FILE > step + 1:
                table = read_file(file)
                self._write(file, table.filter(pc.less_equal(table["step"], step)))

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        if parallel.tensor_rank() or not trainer.world.first_stage:
            return  # another rank of this replica has noted the same sequences
        for index, each in zip(trainer.batch_indexes, sequences, strict=True):
            offsets = np.cumsum(each.lengths) - each.lengths
            entries = np.empty((len(each.lengths), 7), dtype=np.int64)
            entries[:, 0], entries[:, 1], entries[:, 2] = step, index, each.number
            entries[:, 3], entries[:, 4] = each.passages, offsets
            entries[:, 5], entries[:, 6] = each.lengths, each.injected
            self._pending.append(entries)

    def flush(self, trainer: Training, step: int) -> None:
        noted = np.concatenate(self._pending) if self._pending else np.empty((0, 7), dtype=np.int64)
        self._pending = []
        if trainer.world.size > 1:
            parts: list[np.ndarray] | None = [noted] * trainer.world.size if trainer.world.is_main else None
            dist.gather_object(noted, parts)
            noted = np.concatenate(parts) if parts is not None else noted
        if not trainer.world.is_main or not len(noted):
            return
        noted = noted[np.lexsort((noted[:, 4], noted[:, 1], noted[:, 0]))]
        chunks = (noted[:, 0] - 1) // STEPS_PER_FILE
        for chunk in np.unique(chunks):
            part = noted[chunks == chunk]
            columns = [pa.array(part[:, i]).cast(field.type) for i, field in enumerate(SCHEMA)]
            table = pa.Table.from_arrays(columns, schema=SCHEMA)
            first = int(chunk) * STEPS_PER_FILE + 1
            file = self.directory / f"steps-{first:08d}.parquet"
            self._write(file, pa.concat_tables([read_file(file), table]) if file.exists() else table)

    def _write(self, file: Path, table: pa.Table) -> None:
        with atomic_path(file) as part:
            write_table(table.combine_chunks(), part)
