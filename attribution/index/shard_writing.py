"""Writing shards: files of a size that is known from the start, filled window by window by any number of ranks.

    rows-00003.sign.safetensors.unfinished   header and rows, as far as they are there
    rows-00003.windows                       which of its windows are on the disk

A *window* is what a rank has in hand at once: some passages whose rows, in float32, take about 64 MiB. Memory is that
of a window, however large the shard is, and what a kill costs is a window of each rank. Whoever writes the last window
of a shard gives its files their names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from headwater.attribution.index.records import ShardRecord, record_path, write_record
from headwater.attribution.index.shards import dtype_name, shard_name
from headwater.configs.errors import CorruptError
from headwater.train.artifacts import fingerprint_file, read_json, remove, write_json
from headwater.train.locks import file_lock

Fields = Mapping[str, tuple[torch.dtype, int | None]]
"""Stored tensor -> its dtype, and numbers per row; None: one, without an axis."""

NOTES = ".windows"


class Column(NamedTuple):
    """Where the rows of one stored tensor lie in a file: from byte `begin` on, `width` bytes each."""

    name: str
    begin: int
    width: int


def shard_header(fields: Fields, rows: int) -> tuple[bytes, list[Column], int]:
    """The beginning of a safetensors file of so many rows, as safetensors itself writes it; where its columns lie; and
    its size in bytes."""
    entries, places, at = {}, [], 0
    for name, (dtype, count) in sorted(fields.items(), key=lambda field: (-field[1][0].itemsize, field[0])):
        width = dtype.itemsize * (1 if count is None else count)
        shape = [rows] if count is None else [rows, count]
        entries[name] = {"dtype": dtype_name(dtype), "shape": shape, "data_offsets": [at, at + rows * width]}
        places.append((name, at, width))
        at += rows * width
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, [Column(name, len(header) + begin, width) for name, begin, width in places], len(header) + at


class GrowingShard:
    """One shard that is not whole yet.

    Args:
        directory: of the index.
        number: of the shard.
        span: its passages [start, stop).
        window: passages of a window; the last may have fewer.
        codecs: name -> what it stores of a row, norms included.
    """

    def __init__(
        self, directory: Path, number: int, span: tuple[int, int], window: int, codecs: Mapping[str, Fields]
    ) -> None:
        self.directory, self.number, self.span, self._window = directory, number, span, window
        self.windows = -(-(span[1] - span[0]) // window)
        self._targets = {codec: directory / shard_name(number, codec) for codec in codecs}
        self._files = {codec: path.with_name(f"{path.name}.unfinished") for codec, path in self._targets.items()}
        self._notes = record_path(directory, number).with_suffix(NOTES)
        self._headers = {codec: shard_header(fields, span[1] - span[0]) for codec, fields in codecs.items()}

    def write(self, window: int, blocks: Iterable[Mapping[str, Mapping[str, Tensor]]]) -> None:
        """Writes one window, counted within the shard: codec -> stored tensors of its rows, block by block in order."""
        with self._alone():
            if not self._is_begun():
                self._begin()
        with self._opened() as descriptors:
            row = window * self._window
            for block in blocks:
                for codec, descriptor in descriptors.items():
                    for name, begin, width in self._headers[codec][1]:
                        data = block[codec][name].contiguous().view(torch.uint8).numpy().data.cast("B")
                        write_at(descriptor, data, begin + row * width)
                row += len(next(iter(block.values()))["norm"])
            for descriptor in descriptors.values():
                os.fsync(descriptor)
        with self._alone():
            done = self.done() | {window}
            if self.windows > 1:
                write_json(self._notes, {"rows": self._window, "done": sorted(done)})
            if len(done) == self.windows:
                self._close()

    def _alone(self) -> AbstractContextManager[None]:
        """While no other rank makes the shard's files or notes its window; of a single window there is no other."""
        return file_lock(self._notes) if self.windows > 1 else nullcontext()

    def done(self) -> set[int]:
        """The windows that are on the disk.

        Raises:
            CorruptError: the notes are not as they were written.
        """
        if not self._notes.exists():
            return set()
        noted = read_json(self._notes)
        if not isinstance(noted, dict) or noted.get("rows") != self._window or not isinstance(noted.get("done"), list):
            fix = "remove it: the shard is made again"
            raise CorruptError(f"{self._notes} does not note windows of its shard", got=noted, fix=fix)
        return set(noted["done"]) & set(range(self.windows))

    def take_up(self) -> None:
        """Looks at what a killed build has left: notes of files that are gone, or are others now, hold no longer."""
        for codec, file in self._files.items():  # it may have been killed while it gave the files their names
            if self._targets[codec].exists() and not file.exists():
                os.replace(self._targets[codec], file)
        if not self._is_begun():
            remove(self._notes)
        elif len(self.done()) == self.windows:
            self._close()

    def _is_begun(self) -> bool:
        for codec, file in self._files.items():
            header, _, size = self._headers[codec]
            try:
                with open(file, "rb") as opened:
                    if os.fstat(opened.fileno()).st_size != size or opened.read(len(header)) != header:
                        return False
            except FileNotFoundError:
                return False
        return True

    def _begin(self) -> None:
        """Makes the files, empty but for their headers."""
        remove(self._notes)
        for codec, file in self._files.items():
            header, _, size = self._headers[codec]
            with open(file, "wb") as opened:
                opened.write(header)
                opened.truncate(size)

    @contextmanager
    def _opened(self) -> Iterator[dict[str, int]]:
        descriptors: dict[str, int] = {}
        try:
            for codec, file in self._files.items():
                descriptors[codec] = os.open(file, os.O_WRONLY)
            yield descriptors
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)

    def _close(self) -> None:
        """Gives the files their names, and notes them in the shard's record."""
        records = []
        for codec, target in self._targets.items():
            file = self._files[codec]
            mark = fingerprint_file(file)
            records.append(ShardRecord(codec, target.name, *self.span, file.stat().st_size, mark))
        for codec, target in self._targets.items():
            os.replace(self._files[codec], target)
        write_record(self.directory, self.number, records)
        remove(self._notes)


def write_at(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
