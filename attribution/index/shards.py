"""Shard files: safetensors, read through a memory map.

The header is parsed here so that a file can be mapped whole, sliced without a copy, and checked for its length; a
damaged file gives one clear error instead of a crash.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from headwater.attribution.index.errors import MissingShardError, TruncatedShardError

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
_FIX = "run `headwater index` again after removing the file: only its shard is computed anew"


def dtype_name(dtype: torch.dtype) -> str:
    """What a header calls it."""
    return next(name for name, each in _DTYPES.items() if each == dtype)


def shard_name(number: int, codec: str) -> str:
    return f"rows-{number:05d}.{codec}.safetensors"


def is_tensor(entry: Any) -> bool:
    """Whether the header says something possible of a tensor: rows of a known type that fill their place."""
    if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
        return False
    shape: Any = entry.get("shape")
    place: Any = entry.get("data_offsets")
    for numbers in (shape, place):
        if not isinstance(numbers, list) or not numbers or not all(type(n) is int and n >= 0 for n in numbers):
            return False
    return len(place) == 2 and place[1] - place[0] == math.prod(shape) * _DTYPES[entry["dtype"]].itemsize


class ShardFile:
    """A mapped shard. `fields(start, stop)` are views into the map: valid until `close`.

    Raises:
        MissingShardError: the file is not there.
        TruncatedShardError: its length is not what its header says, or the header cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else None
        except FileNotFoundError:
            raise MissingShardError(
                f"shard {path} is missing", fix="run `headwater index` again: only missing shards are computed"
            ) from None
        header, self._base = self._header(size)
        self._entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if not self._entries or not all(map(is_tensor, self._entries.values())):
            raise TruncatedShardError(f"shard {path} has an unreadable header", fix=_FIX)
        end = max(entry["data_offsets"][1] for entry in self._entries.values())
        if size != self._base + end:
            raise TruncatedShardError(
                f"shard {path} has the wrong length",
                got=f"{size} bytes",
                expected=f"{self._base + end} bytes",
                fix=_FIX,
            )
        self.rows = min(entry["shape"][0] for entry in self._entries.values())

    def _header(self, size: int) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(self._map[:8], "little") if self._map is not None and size >= 8 else -1
        if self._map is None or not 2 <= length <= size - 8:
            raise TruncatedShardError(f"shard {self.path} is cut off in its header", got=f"{size} bytes", fix=_FIX)
        try:
            return dict(json.loads(self._map[8 : 8 + length])), 8 + length
        except (ValueError, TypeError, RecursionError) as error:
            raise TruncatedShardError(f"shard {self.path} has an unreadable header", got=error, fix=_FIX) from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What a row has of each stored tensor."""
        return {name: tuple(entry["shape"][1:]) for name, entry in self._entries.items()}

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of one stored tensor, a view into the map."""
        entry = self._entries[name]
        rows, *rest = entry["shape"]
        stop = rows if stop is None else stop
        dtype = _DTYPES[entry["dtype"]]
        width = 1
        for size in rest:
            width *= size
        if stop <= start or not width:
            return torch.empty([max(stop - start, 0), *rest], dtype=dtype)
        offset = self._base + entry["data_offsets"][0] + start * width * dtype.itemsize
        flat = torch.frombuffer(self._map, dtype=dtype, count=(stop - start) * width, offset=offset)
        return flat.view(stop - start, *rest)

    def ask(self, start: int, stop: int) -> None:
        """Asks the disk for rows [start, stop), which are going to be read."""
        self._advise(mmap.MADV_WILLNEED, start, stop)

    def let_go(self, start: int, stop: int) -> None:
        """Takes rows [start, stop) out of the process's memory; they stay in the page cache, and can be read again."""
        self._advise(mmap.MADV_DONTNEED, start, stop)

    def _advise(self, advice: int, start: int, stop: int) -> None:
        """Tells the kernel of the pages that hold rows [start, stop) of the stored tensors."""
        for entry in self._entries.values():
            row = math.prod(entry["shape"][1:]) * _DTYPES[entry["dtype"]].itemsize
            first = self._base + entry["data_offsets"][0] + start * row
            if self._map is not None and row and stop > start:
                page = first - first % mmap.PAGESIZE
                self._map.madvise(advice, page, first + (stop - start) * row - page)

    def fields(self, start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
        return {name: self.tensor(name, start, stop) for name in self._entries}

    def close(self) -> None:
        """Drops the map; it goes once no view of it is left."""
        self._map = None

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
