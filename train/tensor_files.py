"""Safetensors files: written for those whom the umask admits, read with one error for whatever is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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


def umask() -> int:
    """What this process's files are kept from, asked without changing it: other threads write files meanwhile."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
