"""Every score of a corpus, written as the scan goes by: no more than a block of them is in memory.

`.npy`: float32 [passages, queries] in the order of the index, to be mapped (`np.load(FILE, mmap_mode="r")`); NaN where
no score was made. `.parquet`: `id`, and a column for each query under its id; null where no score was made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.distributed import distributed, rank_and_world
from headwater.configs.errors import UserError
from headwater.train.artifacts import atomic_path, remove

GAP_ROWS = 1 << 16
"""Passages without a score, or rows of a group of Parquet, that are held at a time."""

Ids = Callable[[int, int], list[str]]
"""The ids of passages [start, stop)."""


class ScoreSink(Protocol):
    """Takes the blocks of one rank, in ascending order."""

    def __call__(self, start: int, stop: int, scores_NQ: Tensor) -> None: ...

    def finish(self, stop: int) -> None:
        """Fills what is missing before `stop`, and closes the file."""
        ...


@contextmanager
def score_file(path: str | Path, work: Scan, names: Sequence[str], ids: Ids) -> Iterator[ScoreSink]:
    """A sink for `search` that writes every score; the file appears whole or not at all, on every rank together.

    Args:
        names: of the queries.

    Raises:
        UserError: two columns of a table would have one name.
    """
    path = Path(path)
    taken = [name for name in names if name == "id" or list(names).count(name) > 1]
    if path.suffix == ".parquet" and taken:
        what = f"{path} would have two columns of one name"
        raise UserError(what, got=taken[0], fix="write .npy, or rename the query")
    rank, world = rank_and_world()
    first, stop = territory(work)
    with ExitStack() as stack:
        part = _from_first(stack.enter_context(atomic_path(path)) if rank == 0 else None)
        mine = part if path.suffix == ".npy" or world == 1 else part.with_name(f"{part.name}.{rank}.part")
        if mine != part:
            stack.callback(remove, mine)
        if path.suffix == ".npy":
            offset = _npy_header(part, (work.passages, len(names)), write=rank == 0)
            _wait()
            sink: Any = _NpyScores(part, offset, len(names), first)
        else:
            sink = _ParquetScores(mine, names, ids, first)
        stack.callback(sink.close)
        yield sink
        sink.finish(stop)
        _wait()
        if mine != part and rank == 0:
            _join(part, [part.with_name(f"{part.name}.{each}.part") for each in range(world)])
        _wait()
    _wait()


def territory(work: Scan) -> tuple[int, int]:
    """The passages [first, stop) that this rank writes: from its first block to the next rank's, so that those which
    no rank has a block of (of an unfinished index) are somebody's too."""
    rank, world = rank_and_world()
    firsts: list[int | None] = [next((start for start, _ in work.pieces()), None)]
    if distributed():
        own, firsts = firsts[0], [None] * world
        torch.distributed.all_gather_object(firsts, own)
    bounds = [work.passages]
    for first in reversed(firsts[1:]):
        bounds.append(bounds[-1] if first is None else first)
    bounds = [0, *reversed(bounds)]
    return bounds[rank], bounds[rank + 1]


class _NpyScores:
    """Rows of a .npy file that several ranks write, each its own."""

    def __init__(self, path: Path, offset: int, queries: int, first: int) -> None:
        self._file = os.open(path, os.O_WRONLY)
        self._offset, self._queries, self._next = offset, queries, first

    def __call__(self, start: int, stop: int, scores_NQ: Tensor) -> None:
        self._fill(start)
        scores_NQ = torch.where(scores_NQ == -torch.inf, torch.nan, scores_NQ)
        self._write(start, scores_NQ.contiguous().numpy())
        self._next = stop

    def finish(self, stop: int) -> None:
        self._fill(stop)
        os.fsync(self._file)
        self.close()

    def _fill(self, stop: int) -> None:
        for start in range(self._next, stop, GAP_ROWS):
            self._write(start, np.full((min(GAP_ROWS, stop - start), self._queries), np.nan, np.float32))

    def _write(self, start: int, scores_NQ: np.ndarray) -> None:
        place, left = self._offset + 4 * start * self._queries, scores_NQ.data.cast("B")
        while left:
            done = os.pwrite(self._file, left, place)
            place, left = place + done, left[done:]

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class _ParquetScores:
    """A table of one rank's passages."""

    def __init__(self, path: Path, names: Sequence[str], ids: Ids, first: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([("id", pa.string()), *((name, pa.float32()) for name in names)])
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._ids, self._next = ids, first
        self._held: list[Any] = []

    def __call__(self, start: int, stop: int, scores_NQ: Tensor) -> None:
        self._fill(start)
        self._add(start, stop, scores_NQ.numpy())
        self._next = stop

    def finish(self, stop: int) -> None:
        self._fill(stop)
        self._flush()
        self.close()

    def _fill(self, stop: int) -> None:
        for start in range(self._next, stop, GAP_ROWS):
            end = min(start + GAP_ROWS, stop)
            self._add(start, end, np.full((end - start, len(self._schema) - 1), -np.inf, np.float32))

    def _add(self, start: int, stop: int, scores_NQ: np.ndarray) -> None:
        import pyarrow as pa

        columns = [pa.array(self._ids(start, stop), pa.string())]
        columns += [pa.array(np.ascontiguousarray(column), mask=column == -np.inf) for column in scores_NQ.T]
        self._held.append(pa.record_batch(columns, schema=self._schema))
        if sum(map(len, self._held)) >= GAP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._held:
            table = pa.Table.from_batches(self._held, self._schema)
            self._file.write_table(table, row_group_size=len(table))
            self._held.clear()

    def close(self) -> None:
        self._file.close()


def _npy_header(path: Path, shape: tuple[int, int], *, write: bool) -> int:
    """Bytes of the header; with `write` the file is made as long as it will be."""
    import io

    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    if write:
        with open(path, "wb") as file:
            file.write(header.getvalue())
            file.truncate(len(header.getvalue()) + 4 * shape[0] * shape[1])
    return len(header.getvalue())


def _join(out: Path, parts: Sequence[Path]) -> None:
    """One table of those of the ranks, a group of rows at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(out, pq.read_schema(parts[0]), compression="zstd") as joined:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    joined.write_table(file.read_row_group(group), row_group_size=GAP_ROWS)


def _from_first(path: Path | None) -> Path:
    """What the first rank has, on every rank."""
    told: list[Any] = [path]
    if distributed():
        torch.distributed.broadcast_object_list(told, src=0)
    assert told[0] is not None
    return told[0]


def _wait() -> None:
    if distributed():
        torch.distributed.barrier()
