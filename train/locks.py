"""Locks beside files, which the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from headwater.train.artifacts import make_directories, remove_if_empty


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds a lock beside `path` that the kernel releases when its holder dies; its file goes when it is given back."""
    name = path.with_name(path.name + ".lock")
    lock, made = take_lock(name)
    with lock:
        try:
            yield
        finally:
            if is_file_at(lock.fileno(), name):
                name.unlink()
            remove_if_empty(made)


def take_lock(name: Path) -> tuple[IO[str], list[Path]]:
    """A file that this process alone has locked, and the directories that were made for it."""
    made: list[Path] = []
    while True:
        made += make_directories(name.parent)
        try:
            lock = open(name, "w")  # noqa: SIM115 (kept open while it is held)
        except FileNotFoundError:
            continue  # the one before removed the directory that it had made
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_file_at(lock.fileno(), name):
            return lock, made
        lock.close()  # the one before removed it while this process waited


def is_file_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that stands at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
