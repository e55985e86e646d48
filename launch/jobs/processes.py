"""Processes that this one starts: the cores they run on, and signals that are handed on to them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwater.train.ending import ENDED
from headwater.train.lifetime import PARENT


def start_child(command: Sequence[str], log: Path | None = None) -> subprocess.Popen[bytes]:
    """Starts a module of this package, which ends when this process does (`headwater.train.lifetime`).

    Args:
        command: as of `module_command`.
        log: what it prints is added there, if one is named.
    """
    environment = {**os.environ, PARENT: str(os.getpid())}
    environment.pop(ENDED, None)  # its end is not this one's
    if log is None:
        return subprocess.Popen(command, env=environment)
    with open(log, "ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def run_child(command: Sequence[str]) -> int:
    """Runs a command to its end; returns its exit status. A SIGTERM is handed on to it, so that it may save and stop.

    Raises:
        KeyboardInterrupt: Ctrl-C, once the command has ended: the terminal sends it to the command too.
    """
    told = threading.Event()
    with start_child(command) as process, _sigterm_handed_to(process, told):
        try:
            return process.wait()
        except KeyboardInterrupt:
            told.set()
            process.wait()
            raise


@contextmanager
def _sigterm_handed_to(process: subprocess.Popen[bytes], told: threading.Event) -> Iterator[None]:
    """Hands SIGTERM on to a process that is not `told` yet: a second signal would cut short what the first began."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's alone
        return

    def hand_on(*_: Any) -> None:
        if not told.is_set():
            told.set()
            process.terminate()

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, so that no process is left over that it would have ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def core_sets(parallel: int) -> list[str]:
    """The cores of each process that runs at once, so that they do not crowd each other; empty: all."""
    cores = sorted(os.sched_getaffinity(0))
    if parallel == 1 or len(cores) < parallel:
        return [""] * parallel
    return [",".join(map(str, cores[place::parallel])) for place in range(parallel)]


def keep_to_cores(cores: str) -> None:
    """Keeps this process, and those that it starts, to cores of `core_sets`."""
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
