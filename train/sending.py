"""The files of a checkpoint, sent to a store by all ranks, each its part of them: a run's directory lies on a disk that
all of them share, and a machine's network is narrower than a store.

Rank 0 says in `checkpoints/sending.part/order.json` which checkpoint is sent. The others look for that behind the
training's back, send what they are dealt and note beside it how that ended. It goes by files, as checkpoints are put
together, and not by collectives: nobody who trains waits for somebody who sends. A `.part`: the next start removes what
a killed run has left. Orders have names that come once, so that no note of an earlier start is taken for an answer, and
a process that outlived a start of another number of ranks, which would deal the files otherwise, does not answer.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from headwater.configs.errors import UserError
from headwater.train import parallel
from headwater.train.artifacts import read_json, remove, write_json
from headwater.train.parallel import World
from headwater.train.remote import StoreError
from headwater.train.remote_checkpoints import RemoteCheckpoints

PLACE, ORDER = "sending.part", "order.json"
LOOKS_S, NOTED_S = 0.5, 0.1
"""Seconds between two looks for an order, and for what became of it."""
AGAIN_S = 10.0
"""Seconds until an answer that could not be given is tried again."""


class Orders:
    """Rank 0's side.

    Args:
        directory: the run's checkpoints.
    """

    def __init__(self, remote: RemoteCheckpoints, directory: Path, world: World) -> None:
        self.remote, self.place, self.world = remote, directory / PLACE, world
        self._order = ""

    def send_files(self, path: Path, wanted: Callable[[], bool]) -> None:
        """Sends a checkpoint's files with the help of the others; returns when all have ended, or it is not `wanted`
        any longer.

        Raises:
            UserError: what the first of the ranks met with that failed.
        """
        self._order = secrets.token_hex(8)
        write_json(self.place / ORDER, {"order": self._order, "ranks": self.world.size, "step": path.name})
        error = parallel.attempt(lambda: self.remote.send_files(path, wanted, (0, self.world.size)))
        errors = [error, *(self._met(rank, wanted) for rank in range(1, self.world.size))]
        if first := next((each for each in errors if each is not None), None):
            raise first

    def _met(self, rank: int, wanted: Callable[[], bool]) -> BaseException | None:
        """Waits for a rank's note; returns the error that it names."""
        while wanted():
            note = _read(self.place / _note_of(rank))
            if note is not None and note["order"] == self._order:
                return StoreError(**note["error"]) if note["error"] else None
            time.sleep(NOTED_S)
        return None

    def end(self) -> None:
        with contextlib.suppress(OSError):  # somebody may write a last note: the next start removes it
            remove(self.place)


class Helper:
    """The side of every other rank.

    Attributes:
        error: why the last order has no answer: its note does not reach the disk, say. It is tried again.
    """

    def __init__(self, remote: RemoteCheckpoints, directory: Path, world: World) -> None:
        self.remote, self.directory, self.world = remote, directory, world
        self.error: BaseException | None = None
        self._abandoned = threading.Event()
        # A daemon: a process that ends does not wait for what is being sent.
        self._thread = threading.Thread(target=self._run, daemon=True, name="sends-checkpoints")

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        done = ""
        while not self._abandoned.wait(LOOKS_S if self.error is None else AGAIN_S):
            order = _read(self.directory / PLACE / ORDER)
            if order is not None and order["order"] != done and order["ranks"] == self.world.size:
                self.error = parallel.attempt(partial(self._follow, order))
                done = order["order"] if self.error is None else done

    def _follow(self, order: dict[str, Any]) -> None:
        """Sends its part and notes how that ended; raises what keeps it from noting."""
        error = parallel.attempt(partial(self._send, self.directory / order["step"]))
        if not self._abandoned.is_set():
            note = {"order": order["order"], "error": self._told(error) if error is not None else None}
            write_json(self.directory / PLACE / _note_of(self.world.rank), note)

    def _send(self, path: Path) -> None:
        part = self.world.rank, self.world.size
        self.remote.send_files(path, lambda: not self._abandoned.is_set(), part)

    def _told(self, error: BaseException) -> dict[str, Any]:
        where = f"rank {self.world.rank} on {platform.node()}"
        if isinstance(error, UserError):
            return {"what": f"{error.what} ({where})", "got": str(error.got), "fix": error.fix}
        return {"what": f"{where} cannot send its part of a checkpoint", "got": repr(error), "fix": None}

    def abandon(self) -> None:
        """Follows no more orders, and breaks off what is under way."""
        self._abandoned.set()


def _note_of(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _read(path: Path) -> Any:
    """None while there is nothing to read."""
    try:
        return read_json(path)
    except UserError:
        return None
