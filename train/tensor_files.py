"""Safetensors files: written for those whom the umask admits, read with one error for whatever is wrong."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwater.configs.errors import CorruptError, MissingError
from headwater.train.artifacts import remove, sync


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes one file, to the disk: another machine's fsync does not reach what this one has written. The same tensors
    give the same bytes.

    Raises:
        OSError: the disk is full, say; nothing is left at `path`.
    """
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    except SafetensorError as error:
        remove(path)
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    os.chmod(path, 0o666 & ~umask())  # safetensors keeps every file to its owner
    try:
        sync(path)
    except OSError:
        remove(path)
        raise


def load_tensors(path: Path, names: Sequence[str] = (), *, fix: str) -> dict[str, Tensor]:
    """Reads one file whole.

    Args:
        names: tensors that it must hold.

    Raises:
        MissingError, CorruptError: it is not there, is no safetensors file, or lacks one of them.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing", fix=fix)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CorruptError(f"{path} cannot be read", got=error, expected="a safetensors file", fix=fix) from None
    lacking = [name for name in names if name not in tensors]
    if lacking:
        raise CorruptError(f"{path} has no {', '.join(lacking)}", got=sorted(tensors)[:8], fix=fix)
    return tensors


class TensorFile:
    """A safetensors file of which pieces are read, and not a byte beside them: of a mapped file the kernel brings in
    whatever it reads ahead, megabytes at each touch.

    Raises:
        CorruptError: it cannot be read, or is no such file.
    """

    def __init__(self, path: Path, fix: str) -> None:
        self.path, self.fix = path, fix
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDONLY)
            length = int.from_bytes(os.pread(self._file, 8, 0), "little")
            if length > os.fstat(self._file).st_size:
                raise ValueError("it ends within its header")
            self._tensors: dict[str, Any] = json.loads(os.pread(self._file, length, 8))
            self._begin = 8 + length
            if not isinstance(self._tensors, dict):
                raise ValueError("its header is no mapping")
        except (OSError, ValueError, RecursionError) as error:
            self.close()
            raise self._corrupt(error) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, of float32 numbers.

        Raises:
            CorruptError: there is none of that name, or it holds other numbers.
        """
        entry = self._tensors.get(name)
        try:
            shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]  # type: ignore[index]
            whole = entry["dtype"] == "F32" and last - first == 4 * math.prod(shape)  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise self._corrupt(f"{name}: {entry}")
        return shape

    def read(self, name: str, runs: Iterable[tuple[int, int]], count: int) -> Tensor:
        """float32 [count]: `runs` of a tensor's numbers, end to end.

        Args:
            runs: (first, how many), counted in the tensor laid flat.
        """
        self.shape(name)
        begin = self._begin + self._tensors[name]["data_offsets"][0]
        numbers = torch.empty(count, dtype=torch.float32)
        into, place = memoryview(numbers.numpy()).cast("B"), 0  # type: ignore[arg-type]
        try:
            for first, length in runs:
                end, offset = place + 4 * length, begin + 4 * first
                while place < end:
                    got = os.preadv(self._file, [into[place:end]], offset)
                    if not got:
                        raise OSError(f"it ends within {name}")
                    place, offset = place + got, offset + got
        except OSError as error:
            raise self._corrupt(error) from None
        return numbers

    def _corrupt(self, got: object) -> CorruptError:
        expected = "a safetensors file of float32"
        return CorruptError(f"{self.path} cannot be read", got=got, expected=expected, fix=self.fix)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def umask() -> int:
    """What this process's files are kept from, asked without changing it: other threads write files meanwhile."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
