"""The ledger: which passage was in which sequence at which step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist

from headwater.train import parallel
from headwater.train.artifacts import atomic_path, remove
from headwater.train.callbacks.base import Callback, Training
from headwater.train.callbacks.ledger_files import SCHEMA, STEPS_PER_FILE, read_file
from headwater.train.callbacks.ledger_lookup import companion, forget_companion, write_companion
from headwater.train.engine import StepResult
from headwater.train.stream.stream import TrainingSequence
from headwater.train.tables import write_table


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
                forget_companion(file)
                remove(file)
            elif first + STEPS_PER_FILE > step + 1:
                forget_companion(file)
                table = read_file(file)
                self._write(file, table.filter(pc.less_equal(table["step"], step)))
            elif not companion(file).exists():  # fetched from an object store, or of an earlier version
                write_companion(file)

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
            if first + STEPS_PER_FILE - 1 <= step:
                write_companion(file)

    def _write(self, file: Path, table: pa.Table) -> None:
        with atomic_path(file) as part:
            write_table(table.combine_chunks(), part)
