"""The ids of an index's passages: read by row group, so that no list of all of them is ever held.

ids.parquet      the id of every passage, in order of the passages
lookup.parquet   a hash of every id with its passage, in order of the hashes: finds a passage by its id
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs.errors import CorruptError, MissingError

IDS, LOOKUP = "ids.parquet", "lookup.parquet"
GROUP_ROWS = 1 << 16
"""Rows of a row group: what is read for one passage."""

_FIX = "make the index again"


class RowGroups:
    """A Parquet table of which one row group at a time is in memory.

    Args:
        path: the file; kept open.
        columns: names that it must have.

    Raises:
        MissingError, CorruptError: it is not there, is no Parquet file, or lacks a column.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        if not path.is_file():
            raise MissingError(f"{path} is missing", fix=_FIX)
        try:
            self._handle = open(path, "rb")  # noqa: SIM115 (kept open; pyarrow would take `=` for a partition)
            self._file = pq.ParquetFile(self._handle, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._broken(error) from None
        lacking = [name for name in columns if name not in self._file.schema_arrow.names]
        if lacking:
            raise CorruptError(
                f"{path} has no column {', '.join(lacking)}", got=self._file.schema_arrow.names, fix=_FIX
            )
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self.starts = np.cumsum([0, *sizes], dtype=np.int64)
        """First row of each row group, then the number of rows: int64 [groups + 1]."""

    def __len__(self) -> int:
        """Rows."""
        return int(self.starts[-1])

    def read(self, group: int, column: str) -> Any:
        """One column of a row group: a pyarrow array.

        Raises:
            CorruptError: its bytes are not those that were written.
        """
        import pyarrow as pa

        try:
            array = self._file.read_row_group(group, columns=[column])[column].combine_chunks()
            array.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self._broken(error) from None
        return array

    def least(self, column: int) -> np.ndarray:
        """The least number of a column in each row group, as the file notes it: uint64 [groups]."""
        groups = (self._file.metadata.row_group(group) for group in range(self._file.num_row_groups))
        return np.array([group.column(column).statistics.min for group in groups], dtype=np.uint64)

    def close(self) -> None:
        self._handle.close()

    def _broken(self, error: Exception) -> CorruptError:
        return CorruptError(f"{self.path} cannot be read", got=error, expected="a Parquet file", fix=_FIX)


class PassageIds:
    """The ids in an index directory.

    Args:
        directory: of the index.
        passages: how many it has.

    Raises:
        MissingError, CorruptError: ids.parquet is not there, or not as it was written.
    """

    def __init__(self, directory: Path, passages: int) -> None:
        self.directory = directory
        self._ids = RowGroups(directory / IDS, ["id"])
        self._lookup: RowGroups | None = None
        self._least = np.empty(0, np.uint64)
        if len(self._ids) != passages:
            raise CorruptError(
                f"{directory / IDS} belongs to another index", got=len(self._ids), expected=passages, fix=_FIX
            )

    def __len__(self) -> int:
        return len(self._ids)

    def batches(self) -> Iterator[Any]:
        """The ids of all passages in order, as pyarrow string arrays."""
        for group in range(len(self._ids.starts) - 1):
            yield self._ids.read(group, "id")

    def of(self, passages: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of some passages, in the order in which these are given.

        Raises:
            IndexError: a passage that the index does not have.
        """
        import pyarrow as pa

        wanted = np.asarray(passages, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"passages {wanted.min()} to {wanted.max()} of {len(self)}")
        names = np.empty(len(wanted), dtype=object)
        groups = np.searchsorted(self._ids.starts, wanted, side="right") - 1
        for group in np.unique(groups).tolist():
            mine = np.flatnonzero(groups == group)
            places = pa.array(wanted[mine] - self._ids.starts[group])
            names[mine] = self._ids.read(group, "id").take(places).to_pylist()
        return names.tolist()

    def find(self, ids: Collection[str]) -> dict[str, int]:
        """The passages of those of the ids that are here. Memory goes with the ids that are asked for."""
        import pyarrow as pa

        names = sorted(set(ids))
        hashes = hash_ids(pa.array(names, pa.string()))
        order = np.argsort(hashes, kind="stable")
        candidates: list[tuple[int, np.ndarray]] = []
        for group, places in self._groups_of(hashes[order]):
            held, numbers = (self._looked_up.read(group, column).to_numpy() for column in ("hash", "passage"))
            low, high = (np.searchsorted(held, hashes[order[places]], side=side) for side in ("left", "right"))
            for place in np.flatnonzero(low < high).tolist():
                # Copied: a view would keep the whole row group.
                candidates.append((int(order[places[place]]), numbers[low[place] : high[place]].copy()))
        passages = np.concatenate([numbers for _, numbers in candidates]) if candidates else np.empty(0, np.int64)
        askers = [names[place] for place, numbers in candidates for _ in numbers]
        # Two ids may have one hash.
        found = zip(askers, self.of(passages), passages.tolist(), strict=True)
        return {name: passage for asked, name, passage in found if asked == name}

    def _groups_of(self, sorted_hashes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(row group of the lookup, places of the hashes that may stand in it)."""
        least = self._least if len(self._least) or not len(sorted_hashes) else self._bounds()
        first = np.maximum(np.searchsorted(least, sorted_hashes, side="left") - 1, 0)
        last = np.maximum(np.searchsorted(least, sorted_hashes, side="right") - 1, 0)
        for group in np.unique(np.concatenate([first, last])).tolist():
            yield group, np.flatnonzero((first <= group) & (group <= last))

    def _bounds(self) -> np.ndarray:
        self._least = self._looked_up.least(0)
        return self._least

    @property
    def _looked_up(self) -> RowGroups:
        if self._lookup is None:
            self._lookup = RowGroups(self.directory / LOOKUP, ["hash", "passage"])
        return self._lookup

    def close(self) -> None:
        """Closes the files."""
        self._ids.close()
        if self._lookup is not None:
            self._lookup.close()


_SPREAD, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


_HASHED_TOGETHER = 1 << 13
"""Ids whose words stay in the processor's cache."""


def hash_ids(ids: Any) -> np.ndarray:
    """A hash of each id of a pyarrow string array: uint64 [n].

    The bytes are taken as little-endian words of 64 bits, the last filled up with zeros, beginning with their number:
    h <- mix(h xor word), where mix is the finaliser of SplitMix64 (Steele, Lea and Flood 2014). lookup.parquet holds
    these numbers: they may not change within a format of the index.
    """
    slices = (ids.slice(start, _HASHED_TOGETHER) for start in range(0, len(ids), _HASHED_TOGETHER))
    return np.concatenate([np.empty(0, np.uint64), *map(_hash_slice, slices)])


def _hash_slice(ids: Any) -> np.ndarray:
    import pyarrow as pa

    array = ids.cast(pa.large_string())
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    # A word may be read from any byte on, so eight more follow the last.
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[:-8] = data
    words: np.ndarray = np.ndarray(len(data) + 1, "<u8", padded, strides=(1,))
    starts, sizes = offsets[:-1] - offsets[0], np.diff(offsets)
    hashes = _mixed(sizes.astype(np.uint64))
    active = np.arange(len(sizes))
    for at in range(0, int(sizes.max(initial=0)), 8):
        active = active[sizes[active] > at]
        left = np.minimum(sizes[active] - at, 8).astype(np.uint64)
        unused = (np.uint64(8) - left) * np.uint64(8)
        word = words[starts[active] + at] << unused >> unused
        hashes[active] = _mixed(hashes[active] ^ word)
    return hashes


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values + _SPREAD
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))
