"""What is known of an index's shard files: a record beside each that is done, and one table when all are.

rows-00003.json   while the index is being built: the files of shard 3, which is done
shards.parquet    of the finished index, a line a file: codec, file, start, stop, bytes, xxh3
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headwater.configs.errors import CorruptError
from headwater.train.artifacts import atomic_path, read_json, write_json
from headwater.train.tables import read_table, write_table

SHARDS = "shards.parquet"
_KINDS = {"codec": str, "file": str, "start": int, "stop": int, "bytes": int, "xxh3": str}
_BROKEN = "remove it, and build again"


class ShardRecord(NamedTuple):
    """One shard file: the passages [start, stop) in one codec, its size, and the hash of its bytes."""

    codec: str
    file: str
    start: int
    stop: int
    bytes: int
    xxh3: str

    def is_intact(self, directory: Path) -> bool:
        """Whether the file is there and as long as it was."""
        file = directory / self.file
        return file.exists() and file.stat().st_size == self.bytes


def record_path(directory: Path, number: int) -> Path:
    return directory / f"rows-{number:05d}.json"


def write_record(directory: Path, number: int, records: Iterable[ShardRecord]) -> None:
    write_json(record_path(directory, number), {"files": [record._asdict() for record in records]})


def read_record(path: Path) -> list[ShardRecord]:
    """What the record of a shard says of its files.

    Raises:
        CorruptError: it is no such record.
    """
    content = read_json(path)
    entries = content.get("files") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise CorruptError(f"{path} is not the record of a shard", fix=_BROKEN)
    return [ShardRecord(**entry) for entry in entries]


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == _KINDS.keys()
        and all(type(entry[key]) is kind for key, kind in _KINDS.items())
    )


def records_in(directory: Path) -> Iterator[Path]:
    """The records of an unfinished index's shards, in order."""
    yield from sorted(directory.glob("rows-*.json"))


def recorded_starts(directory: Path, codecs: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    """codec -> passages [start, stop) of each shard of an unfinished index that is done."""
    found: dict[str, list[tuple[int, int]]] = {codec: [] for codec in codecs}
    for path in records_in(directory):
        for record in read_record(path):
            if record.codec not in found:
                raise CorruptError(f"{path} is of another index", fix=_BROKEN)
            found[record.codec].append((record.start, record.stop))
    return found


def write_shard_table(directory: Path, codecs: Iterable[str]) -> dict[str, dict[str, int]]:
    """Joins the records into shards.parquet; returns codec -> how many files and bytes."""
    import pyarrow as pa

    order = {codec: place for place, codec in enumerate(codecs)}
    records = [record for path in records_in(directory) for record in read_record(path)]
    records.sort(key=lambda record: (order[record.codec], record.start))
    columns = zip(*records, strict=True)
    with atomic_path(directory / SHARDS) as part:
        write_table(pa.table(dict(zip(ShardRecord._fields, map(list, columns), strict=True))), part)
    totals = {codec: {"files": 0, "bytes": 0} for codec in order}
    for record in records:
        totals[record.codec]["files"] += 1
        totals[record.codec]["bytes"] += record.bytes
    return totals


def read_shard_table(directory: Path) -> list[ShardRecord]:
    """The records of a finished index.

    Raises:
        MissingError, CorruptError: the table is not there, or not as it was written.
    """
    table = read_table(directory / SHARDS, ShardRecord._fields, fix="make the index again")
    return [ShardRecord(*line) for line in zip(*(table[name].to_pylist() for name in ShardRecord._fields), strict=True)]
