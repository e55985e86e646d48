"""The ledger: which passage was in which sequence at which step.

Files hold a fixed number of steps each, so that a run that was interrupted ends with the same files as one that was
not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch.distributed as dist

from headwater.train import parallel
from headwater.train.artifacts import atomic_path, remove
from headwater.train.callbacks.base import Callback

if TYPE_CHECKING:
    from headwater.train.engine import StepResult
    from headwater.train.stream.stream import Row
    from headwater.train.trainer import Trainer

STEPS_PER_FILE = 1000
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("row", pa.int32()),
        ("sequence", pa.int64()),
        ("passage", pa.int64()),
        ("offset", pa.int32()),
        ("length", pa.int32()),
        ("injected", pa.bool_()),
    ]
)


def read_ledger(directory: Path) -> pa.Table:
    """The whole ledger of a run, in order of step, row and offset."""
    files = sorted(directory.glob("steps-*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else SCHEMA.empty_table()


class Ledger(Callback):
    name = "ledger"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pending: list[np.ndarray] = []

    def start(self, trainer: Trainer, step: int) -> None:
        """Forgets what an interrupted run noted after the checkpoint that this one goes on from."""
        if not trainer.world.is_main:
            return
        for file in sorted(self.directory.glob("steps-*.parquet")):
            first = int(file.stem.split("-")[1])
            if first > step:
                remove(file)
            elif first + STEPS_PER_FILE > step + 1:
                table = pq.read_table(file)
                self._write(file, table.filter(pc.less_equal(table["step"], step)))

    def after_step(self, trainer: Trainer, step: int, rows: list[Row], result: StepResult) -> None:
        if parallel.tensor_rank() or not trainer.world.first_stage:
            return  # another rank of this replica has noted the same rows
        for place, row in enumerate(rows):
            offsets = np.cumsum(row.lengths) - row.lengths
            entries = np.empty((len(row.lengths), 7), dtype=np.int64)
            entries[:, 0], entries[:, 1], entries[:, 2] = step, trainer.row_numbers[place], row.sequence
            entries[:, 3], entries[:, 4], entries[:, 5], entries[:, 6] = (
                row.passages,
                offsets,
                row.lengths,
                row.injected,
            )
            self._pending.append(entries)

    def flush(self, trainer: Trainer, step: int) -> None:
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
            self._write(file, pa.concat_tables([pq.read_table(file), table]) if file.exists() else table)

    def _write(self, file: Path, table: pa.Table) -> None:
        with atomic_path(file) as part:
            pq.write_table(table.combine_chunks(), part, compression="zstd")
