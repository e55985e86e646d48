"""Parts of a sweep or a study in processes of their own, some at once, each on its share of the cores."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from headwater.launch.jobs.processes import core_sets


class Piece(Protocol):
    """What is run: it has a name, and a directory that is there."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...


P = TypeVar("P", bound=Piece)


def run_pieces(
    pieces: Sequence[P], parallel: int, module: str, say: Callable[[str], None], ended: Callable[[P, int], bool]
) -> list[P]:
    """Runs `python -m module PATH CORES` for each piece, `parallel` at once; returns those that failed.

    Args:
        module: what is run; its output goes to PATH/log.txt.
        ended: told the exit status of each; False: nothing more is begun.

    Raises:
        KeyboardInterrupt: Ctrl-C here, which is handed on to what is running, or `ended` said so.
    """
    places, lock, stopped = core_sets(parallel), threading.Lock(), threading.Event()
    running: set[subprocess.Popen[bytes]] = set()

    def work(piece: P) -> bool:
        with lock:
            if stopped.is_set():
                return True
            cores = places.pop()
            command = [sys.executable, "-m", module, str(piece.path), cores]
            with open(piece.path / "log.txt", "ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            running.add(process)
        status = process.wait()
        with lock:
            places.append(cores)
            running.discard(process)
        if stopped.is_set():
            return status == 0
        if ended(piece, status):
            say(f"{piece.name}: {'finished' if status == 0 else f'failed with status {status}'}")
        else:
            stopped.set()
        return status == 0

    with ThreadPoolExecutor(parallel) as pool:
        try:
            fine = list(pool.map(work, pieces))
        except KeyboardInterrupt:
            stopped.set()
            with lock:
                for process in running:
                    process.terminate()
            raise
    if stopped.is_set():
        raise KeyboardInterrupt
    return [piece for piece, well in zip(pieces, fine, strict=True) if not well]
