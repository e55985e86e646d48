"""Locks beside files, which name their holder and which the kernel releases when it dies.

Where the file system knows no such locks (Lustre without `flock`, some network shares), a file that only one process
can make stands for them; the one of a process of this machine that has died is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from headwater.configs.errors import UserError, mending
from headwater.train.artifacts import make_directories, remove_if_empty

POLL_S = 0.1

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What a file system without locks says to flock."""

VANISHED = 100
"""Times that a directory may be gone again before its lock is there; after that it is one that cannot be made."""

PATIENCE_S = 10.0
"""How long a process that was killed may take to be gone, before its work is begun by another."""


@contextmanager
def file_lock(
    path: Path, *, patience: float | None = None, say: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Holds a lock beside `path` that the kernel releases when its holder dies; its file goes when it is given back.

    Args:
        path: what is locked; the lock's file has `.lock` appended.
        patience: seconds to wait for another holder; None waits for ever.
        say: told, once, whom it waits for.

    Raises:
        UserError: another process holds it, who is named.
    """
    name = path.with_name(path.name + ".lock")
    lock, made = take_lock(name, patience, say)
    with lock:
        try:
            yield
        finally:
            claim_of(name).unlink(missing_ok=True)
            if is_file_at(lock.fileno(), name):
                name.unlink()
            remove_if_empty(made)


@contextmanager
def sole_writer(directory: Path, what: str, on_main: Callable[[Callable[[], object]], object]) -> Iterator[None]:
    """While this job writes into a directory, no other job does: one of its processes holds the lock.

    Args:
        what: name of the lock's file in the directory.
        on_main: runs something on the job's first process and raises its error on all.

    Raises:
        UserError: another job holds the lock; it is named.
    """
    with ExitStack() as held:
        on_main(lambda: held.enter_context(file_lock(directory / what, patience=PATIENCE_S)) and None)
        yield


def take_lock(
    name: Path, patience: float | None = None, say: Callable[[str], None] = lambda line: None
) -> tuple[IO[str], list[Path]]:
    """A file that this process alone has locked, and the directories that were made for it."""
    made: list[Path] = []
    began, told, vanished = time.monotonic(), False, 0
    while True:
        try:
            made += make_directories(name.parent)
            lock = open(name, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (kept open while it is held)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and vanished < VANISHED:
                vanished += 1
                continue  # the one before removed the directory that it had made
            remove_if_empty(made)
            fix = mending(error, "choose another directory, or mend its rights")
            raise UserError(f"{name.parent} cannot be written to", got=error, fix=fix) from None
        try:
            taken = try_lock(lock)
            holder = "" if taken else holder_of(lock)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                lock.close()
                raise
            holder = other_claimant(claim_of(name))
            taken = not holder
        if taken:
            if is_file_at(lock.fileno(), name):
                note_holder(lock)
                return lock, made
            lock.close()  # the one before removed it while this process waited
            claim_of(name).unlink(missing_ok=True)
            continue
        lock.close()
        if patience is not None and time.monotonic() - began > patience:
            raise UserError(
                f"{name.parent} is being written by another process",
                got=holder,
                expected="nobody who writes there",
                fix="wait until it is done or end it, or choose another directory"
                + (f"; if it is gone, remove {claim_of(name)}" if claim_of(name).exists() else ""),
            )
        if not told:
            say(f"waiting for {holder}, which writes {name.parent}")
            told = True
        time.sleep(POLL_S)


def try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def claim_of(name: Path) -> Path:
    """The file that stands for a lock where the file system has none."""
    return name.with_name(f"{name.name}.held")


def other_claimant(claim: Path) -> str:
    """Makes the file that stands for a lock; returns who made it before, or nothing."""
    try:
        descriptor = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        try:
            holder = claim.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return other_claimant(claim)
        if not is_gone(holder):
            return holder or "a process that has just taken it"
        set_aside(claim, holder)
        return other_claimant(claim)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(this_process())
    return ""


def is_gone(holder: str) -> bool:
    """Whether a noted holder was a process of this machine that has died. Of other machines' nothing is known."""
    noted = re.match(r"process (\d+) on (\S+) since", holder)
    if noted is None or noted[2] != platform.node():
        return False
    try:
        os.kill(int(noted[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def set_aside(claim: Path, holder: str) -> None:
    """Removes a dead process's file, but not the one that another has put into its place meanwhile."""
    aside = claim.with_name(f"{claim.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(claim, aside)
        if aside.read_text(encoding="utf-8", errors="replace").strip() != holder:
            with contextlib.suppress(OSError):
                os.link(aside, claim)
        aside.unlink()


def this_process() -> str:
    """The line that names this process as a holder."""
    return f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')} ({shlex.join(sys.argv)})\n"


def note_holder(lock: IO[str]) -> None:
    """Writes into a lock's file who holds it. It is for people to read: a full disk does not stop the holder."""
    with contextlib.suppress(OSError):
        lock.truncate(0)
        lock.write(this_process())
        lock.flush()


def holder_of(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read(1000).strip() or "a process that has just taken it"


def noted_at(path: Path) -> str:
    """Who is noted in the lock beside `path`; empty where there is none."""
    try:
        return path.with_name(path.name + ".lock").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_file_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that stands at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
