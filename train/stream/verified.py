"""Files whose bytes have been compared with their manifest on this machine, so that not every process reads them again.

A note is an empty file under the machine's temporary directory, named by the file's place, size, time of change and the
hash that it was found to have: a file that is written again is compared again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from headwater.train.artifacts import fingerprint
from headwater.train.locks import file_lock


def once_a_machine(path: Path, expected: str, compare: Callable[[], None]) -> None:
    """Runs `compare` unless a process of this user has done so for this very file on this machine.

    Args:
        path: the file; it is there.
        expected: the hash that `compare` looks for.
    """
    notes = notes_directory()
    if notes is None:
        compare()
        return
    status = path.stat()
    found = [str(path.resolve()), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, expected]
    note = notes / fingerprint(found)
    if note.exists():
        return
    with file_lock(note):  # the others wait for the first instead of reading the same bytes
        if not note.exists():
            compare()
            note.touch()


def notes_directory() -> Path | None:
    """This user's own directory of notes, None where there can be none."""
    directory = Path(tempfile.gettempdir()) / f"headwater-{os.getuid()}" / "compared"
    try:
        for each in (directory.parent, directory):  # `parents` would make the first with other rights
            each.mkdir(mode=0o700, exist_ok=True)
        return directory if directory.parent.stat().st_uid == os.getuid() and os.access(directory, os.W_OK) else None
    except OSError:
        return None
