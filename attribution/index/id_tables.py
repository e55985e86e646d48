"""Writing the ids of an index's passages, and showing that no two are alike, in memory that does not grow with them.

Hashes of the ids are sorted on the disk: runs of `RUN` passages each, then ranges of hashes gathered from all runs.
What comes out, in order, is lookup.parquet; ids are alike only where hashes are, and those few are compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from headwater.attribution.index.errors import CoverageError
from headwater.attribution.index.ids import GROUP_ROWS, IDS, LOOKUP, PassageIds, RowGroups, hash_ids
from headwater.train.artifacts import atomic_path

RUN = 1 << 20
"""Passages whose hashes are in memory at once (16 bytes each)."""


def write_id_tables(directory: Path, ids: Iterable[Any], passages: int) -> None:
    """Writes ids.parquet and lookup.parquet.

    Args:
        directory: of the index.
        ids: of all passages in order, in batches: pyarrow string arrays, or lists of strings.
        passages: how many there must be.

    Raises:
        CoverageError: the ids are not one for each passage, or two are alike.
    """
    _write_ids(directory / IDS, ids, passages)
    written = PassageIds(directory, passages)
    try:
        _write_lookup(directory / LOOKUP, written)
    finally:
        written.close()


def _write_ids(path: Path, ids: Iterable[Any], passages: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field("id", pa.string(), nullable=False)])
    count = nulls = 0
    with atomic_path(path) as part:
        with pq.ParquetWriter(
            part, schema, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
        ) as writer:
            for group in _regrouped(ids):
                count, nulls = count + len(group), nulls + group.null_count
                if count > passages or nulls:
                    break
                writer.write_table(pa.table([group], schema=schema), row_group_size=GROUP_ROWS)
        if count != passages or nulls:
            got = f"{'more than ' if count > passages else ''}{min(count, passages) - nulls}"
            raise CoverageError("the passage ids are not one for each passage", got=got, expected=passages)


def _regrouped(ids: Iterable[Any]) -> Iterator[Any]:
    """The same ids in pyarrow arrays of `GROUP_ROWS`; the last may be shorter."""
    import pyarrow as pa

    held: list[Any] = []
    for batch in ids:
        array = batch if isinstance(batch, pa.Array) else pa.array(batch, pa.string())
        held.append(array.cast(pa.string()))
        if sum(map(len, held)) < GROUP_ROWS:
            continue
        whole = pa.concat_arrays(held)
        full = len(whole) // GROUP_ROWS * GROUP_ROWS
        yield from (whole.slice(start, GROUP_ROWS) for start in range(0, full, GROUP_ROWS))
        held = [whole.slice(full)]
    rest = pa.concat_arrays(held) if held else pa.array([], pa.string())
    if len(rest):
        yield rest


def _write_lookup(path: Path, ids: PassageIds) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field("hash", pa.uint64(), nullable=False), pa.field("passage", pa.int64(), nullable=False)])
    packed = dict.fromkeys(schema.names, "DELTA_BINARY_PACKED")
    # Without a name: it goes with the process.
    with atomic_path(path) as part, tempfile.TemporaryFile(dir=path.parent) as file:
        runs = _Runs(file, -(-len(ids) // RUN))
        for hashes, first in _hashed(ids):
            runs.add(hashes, first, ids)
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "column_encoding": packed}
        with pq.ParquetWriter(part, schema, write_page_checksum=True, **options) as writer:
            for hashes, numbers in runs.sorted():
                _require_distinct(hashes, numbers, ids)
                writer.write_table(pa.table([hashes, numbers], schema=schema), row_group_size=GROUP_ROWS)


def _hashed(ids: PassageIds) -> Iterator[tuple[np.ndarray, int]]:
    """The hashes of `RUN` passages after the other, and the first of these passages."""
    held: list[np.ndarray] = []
    first = 0
    for batch in ids.batches():
        held.append(hash_ids(batch))
        if sum(map(len, held)) >= RUN:
            yield np.concatenate(held), first
            first, held = first + sum(map(len, held)), []
    if held:
        yield np.concatenate(held), first


class _Runs:
    """Runs of passages in order of their hashes, in one file, to be read again by ranges of hashes.

    Args:
        file: empty, open for reading and writing.
        count: of runs, at most, and of ranges of hashes, each of which is in memory as a whole.
    """

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file, self._runs = file, 0
        self._edges = np.array([(place << 64) // count for place in range(1, count)], dtype=np.uint64)
        # All at once: small arrays that stay, made between large ones that go, would keep these' memory from being
        # used again.
        self._starts = np.empty(count, dtype=np.int64)
        self._bounds = np.empty((count, count + 1), dtype=np.int64)

    def add(self, hashes: np.ndarray, first: int, ids: PassageIds) -> None:
        """Takes the passages from `first` on. Ids that are alike within a run are found here: else a range of hashes
        might hold all passages."""
        order = np.argsort(hashes, kind="stable")
        hashes, numbers = hashes[order], order.astype(np.int64) + first
        _require_distinct(hashes, numbers, ids)
        self._starts[self._runs] = self._file.tell()
        self._bounds[self._runs] = [0, *np.searchsorted(hashes, self._edges), len(hashes)]
        self._runs += 1
        for column in (hashes, numbers):
            column.tofile(self._file)

    def sorted(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(hashes, passages) in order of the hashes, one range of them after the other."""
        sizes = np.diff(self._bounds[: self._runs], axis=1)
        room = int(sizes.sum(axis=0).max())
        read, found = ((np.empty(room, np.uint64), np.empty(room, np.int64)) for _ in range(2))
        for place in range(sizes.shape[1]):
            count = int(sizes[:, place].sum())
            if not count:
                continue
            for column, into in enumerate(read):
                self._read(column, place, into[:count])
            order = np.argsort(read[0][:count], kind="stable")
            for values, sorted_ in zip(read, found, strict=True):
                np.take(values[:count], order, out=sorted_[:count])
            yield found[0][:count], found[1][:count]

    def _read(self, column: int, place: int, into: np.ndarray) -> None:
        """Gathers a range of hashes from all runs."""
        at = 0
        for run in range(self._runs):
            low, high, rows = self._bounds[run, [place, place + 1, -1]].tolist()
            self._file.seek(int(self._starts[run]) + 8 * (column * rows + low))
            part = into[at : at + high - low]
            part[:] = np.fromfile(self._file, part.dtype, high - low)
            at += high - low


def _require_distinct(hashes: np.ndarray, passages: np.ndarray, ids: PassageIds) -> None:
    """Refuses two passages with one id; hashes are sorted, and passages too where hashes are alike."""
    repeated = np.flatnonzero(hashes[1:] == hashes[:-1])
    if not len(repeated):
        return
    members = np.union1d(repeated, repeated + 1)
    seen: dict[tuple[int, str], int] = {}
    for number, key in zip(
        passages[members].tolist(), zip(hashes[members].tolist(), ids.of(passages[members]), strict=True), strict=True
    ):
        if key in seen:
            raise CoverageError(
                "the passage ids are not one for each passage: two passages have one id",
                got=f"{key[1]!r} for passages {seen[key]} and {number}",
                expected="ids that differ",
                fix="build the corpus again",
            )
        seen[key] = number


def require_lookup(directory: Path, passages: int) -> None:
    """Reads both tables: every id has its hash in the lookup, and no two ids are alike.

    Raises:
        CoverageError: they do not say so.
    """
    ids = PassageIds(directory, passages)
    lookup = RowGroups(directory / LOOKUP, ["hash", "passage"])
    try:
        # Sums of scattered numbers: equal for the same ids in any order, and for others hardly ever.
        expected = sum(int(hash_ids(batch).sum(dtype=np.uint64)) for batch in ids.batches()) % (1 << 64)
        total, numbers, last = 0, 0, (np.empty(0, np.uint64), np.empty(0, np.int64))
        for group in range(len(lookup.starts) - 1):
            hashes, found = (lookup.read(group, name).to_numpy() for name in ("hash", "passage"))
            total, numbers = total + int(hashes.sum(dtype=np.uint64)), numbers + int(found.sum())
            joined = np.concatenate([last[0], hashes]), np.concatenate([last[1], found])
            if bool((joined[0][1:] < joined[0][:-1]).any()):
                raise _unlike(directory)
            _require_distinct(*joined, ids)
            last = hashes[-1:], found[-1:]
        if (len(lookup), total % (1 << 64), numbers) != (passages, expected, passages * (passages - 1) // 2):
            raise _unlike(directory)
    finally:
        ids.close()
        lookup.close()


def _unlike(directory: Path) -> CoverageError:
    return CoverageError(f"{directory / LOOKUP} does not list the ids of {IDS}", fix="make the index again")
