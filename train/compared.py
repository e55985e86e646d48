"""Which files of a run's checkpoints were compared with their hashes, so that a start does not read them all again.

checkpoints/compared.json holds, by checkpoint and file, the size, the time of change and the hash that the file was
written with, or found to have. A file whose size and time are still those is taken for what it was. It is a note, not
part of a checkpoint: without it, or where a copy has other times, the bytes are read.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from headwater.configs.errors import UserError
from headwater.train.artifacts import read_json, write_json

NAME = "compared.json"


def note_compared(checkpoint: Path, files: dict[str, str]) -> None:
    """Notes that the files of a checkpoint have these hashes. Only who writes into the run calls this.

    Args:
        checkpoint: `checkpoints/step-NNNNNNNN`, in its place.
        files: hash by path below the checkpoint.
    """
    with contextlib.suppress(OSError, UserError):  # no note: the next start reads the bytes
        if are_as_compared(checkpoint, files):
            return
        directory = checkpoint.parent
        notes = {name: note for name, note in read_notes(directory).items() if (directory / name).exists()}
        notes[checkpoint.name] = {name: [*state_of(checkpoint / name), digest] for name, digest in files.items()}
        write_json(directory / NAME, notes)


def are_as_compared(checkpoint: Path, files: dict[str, str]) -> bool:
    """Whether every file of a checkpoint is as it was when it was found to have its hash."""
    noted = read_notes(checkpoint.parent).get(checkpoint.name)
    if not isinstance(noted, dict):
        return False
    try:
        return all(noted.get(name) == [*state_of(checkpoint / name), digest] for name, digest in files.items())
    except OSError:
        return False


def read_notes(directory: Path) -> dict[str, Any]:
    """The notes of a run's checkpoints, none where there are none that can be read."""
    try:
        notes = read_json(directory / NAME)
    except UserError:
        return {}
    return notes if isinstance(notes, dict) else {}


def state_of(path: Path) -> tuple[int, int]:
    """What changes with a file's bytes: its size, and its time of change in nanoseconds."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
