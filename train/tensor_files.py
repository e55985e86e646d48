"""Writing safetensors files that those whom the umask admits may read, and whose failures are the system's errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from headwater.train.artifacts import remove


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes one file. The same tensors give the same bytes.

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


def umask() -> int:
    """What this process's files are kept from, asked without changing it: other threads write files meanwhile."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
