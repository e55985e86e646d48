"""Training jobs of several processes, started quickly: a server process has imported everything once and forks them.

`Job(["config.yaml", "out=...", ...], ranks=2)` runs `python -m headwater.train` with these arguments in two processes,
as torchrun would; `Call(function, ...)` runs a function on every rank of such a world.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["headwater.train.run", "headwater.train.corpus.build", "deepspeed", "pyarrow.parquet"])

DEADLINE_S = 180
"""Far more than anything here takes on a quiet machine."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _enter(rank: int, ranks: int, port: int, log: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    stream = open(log, "a", buffering=1)  # noqa: SIM115 (the process's own output from here on)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


def _train(rank: int, ranks: int, port: int, log: str, arguments: list[str]) -> None:
    _enter(rank, ranks, port, log)
    from headwater.train.__main__ import main

    os._exit(_status(lambda: main(arguments)))


def _call(rank: int, ranks: int, port: int, log: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _enter(rank, ranks, port, log)
    os._exit(_status(lambda: function(*arguments)))


def _status(work: Callable[[], Any]) -> int:
    # Leaves by os._exit: the interpreter's own end would wait for threads of a peer that is gone.
    try:
        return int(work() or 0)
    except BaseException:
        traceback.print_exc()
        return 1


class Job:
    """A training job under way. `log` is the file that gathers what its ranks print."""

    def __init__(self, arguments: list[Any], *, ranks: int = 1, log: Path) -> None:
        self.log = log
        self._start(_train, ranks, [str(argument) for argument in arguments])

    def _start(self, target: Callable[..., None], ranks: int, *arguments: Any) -> None:
        port = free_port()
        self.processes = [
            _FORK.Process(target=target, args=(rank, ranks, port, str(self.log), *arguments)) for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def signal(self, number: int) -> None:
        """Sends a signal to every rank, as torchrun does with SIGTERM and a machine's end with SIGKILL."""
        for process in self.processes:
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, number)

    def wait(self, seconds: float = DEADLINE_S) -> int:
        """The first exit status that is not 0, else 0; every process is gone afterwards."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.running:
            if any(process.exitcode not in (None, 0) for process in self.processes):
                time.sleep(0.5)
                break
            time.sleep(0.01)
        overdue = self.running and all(process.exitcode in (None, 0) for process in self.processes)
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join()
        assert not overdue, f"not done after {seconds} s:\n{self.log.read_text()}"
        return next((process.exitcode or 0 for process in self.processes if process.exitcode not in (0, -9)), 0)


class Call(Job):
    """A function of an importable module, run on every rank."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, ranks: int, log: Path) -> None:
        self.log = log
        self._start(_call, ranks, function, arguments)


def train(arguments: list[Any], *, ranks: int = 1, log: Path, seconds: float = DEADLINE_S) -> None:
    """Runs a job to its end.

    Raises:
        AssertionError: with what it printed, if it failed.
    """
    status = Job(arguments, ranks=ranks, log=log).wait(seconds)
    assert status == 0, f"exit status {status}:\n{log.read_text()}"


def wait_for(happened: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
