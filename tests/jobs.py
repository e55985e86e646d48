"""Training jobs of several processes, started quickly: a server process has imported everything once and forks them.

`train(["config.yaml", "out=...", ...], ranks=2, log=...)` runs `python -m headwater.train` with these arguments in two
processes, as torchrun would; `call(function, ..., ranks=2, log=...)` runs a function on every rank of such a world. One
group of processes for each number of ranks stands by and runs one such job after the other, each in process groups of
its own; after a job that failed the next one gets new processes. `Job(...)` and `Job.training(...)` start processes for
themselves alone, to be sent signals.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["tests.preload"])

DEADLINE_S = 180
"""Far more than anything here takes on a quiet machine."""

MAX_JOBS = 12
"""A group runs, then new processes take its place: gloo's threads of groups that are gone stay."""

REFUSED = 2
"""Exit status of a run whose input is wrong: every rank says so and ends in good order."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _enter(rank: int, ranks: int, port: int, log: str) -> None:
    """The environment that torchrun gives, and everything printed goes to the log."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    with open(log, "a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115


def _train(arguments: list[str]) -> int:
    from headwater.train.__main__ import main

    return main(arguments)


def _status(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    try:
        return int(function(*arguments) or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def _alone(rank: int, ranks: int, port: int, log: str, function: Callable[..., Any], *arguments: Any) -> None:
    _enter(rank, ranks, port, log)
    # Leaves by os._exit: the interpreter's own end would wait for threads of a peer that is gone.
    os._exit(_status(function, arguments))


def _stand_by(rank: int, ranks: int, orders: Connection) -> None:
    """Runs one job after the other, until the tests' process has gone."""
    at_first = _global_state()
    while True:
        try:
            port, log, function, arguments = orders.recv()
        except EOFError:
            os._exit(0)
        _enter(rank, ranks, port, log)
        status = _status(function, arguments)
        _leave(at_first)
        orders.send(status)


def _global_state() -> dict[Any, dict[str, Any]]:
    """What DeepSpeed notes of a process's groups, for good: its backend, and the groups it made of it."""
    import deepspeed

    modules = deepspeed.comm.comm, deepspeed.utils.groups
    return {module: {k: v for k, v in vars(module).items() if v is None or v == {}} for module in modules}


def _leave(at_first: dict[Any, dict[str, Any]]) -> None:
    """Brings back a process as it was forked: no groups, no model, torch's own numerics."""
    import torch

    from headwater.train import parallel

    parallel.stop()
    for module, names in at_first.items():
        vars(module).update({name: None if value is None else {} for name, value in names.items()})
    gc.collect()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Job:
    """A function of an importable module under way on every rank, in processes of its own. `log` is the file that
    gathers what its ranks print."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, ranks: int = 1, log: Path) -> None:
        self.log = log
        port = free_port()
        self.processes = [
            _FORK.Process(target=_alone, args=(rank, ranks, port, str(log), function, *arguments))
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    @classmethod
    def training(cls, arguments: list[Any], *, ranks: int = 1, log: Path) -> Job:
        return cls(_train, [str(argument) for argument in arguments], ranks=ranks, log=log)

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


class _Group:
    """So many ranks standing by."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.jobs = ranks, 0
        self.processes, self.orders = [], []
        for rank in range(ranks):
            ours, theirs = _FORK.Pipe()
            process = _FORK.Process(target=_stand_by, args=(rank, ranks, theirs))
            process.start()
            theirs.close()
            self.processes.append(process)
            self.orders.append(ours)

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], log: Path, seconds: float) -> int:
        """The first status that is not 0, else 0; -9 for a rank that died. A group that did not come back whole from a
        job is ended."""
        port = free_port()
        statuses: dict[int, int] = {}
        try:
            for orders in self.orders:
                orders.send((port, str(log), function, arguments))
            end = time.monotonic() + seconds
            while len(statuses) < self.ranks and time.monotonic() < end:
                waiting = {self.orders[rank]: rank for rank in range(self.ranks) if rank not in statuses}
                for orders in multiprocessing.connection.wait(list(waiting), end - time.monotonic()):
                    try:
                        statuses[waiting[orders]] = orders.recv()
                    except EOFError:
                        statuses[waiting[orders]] = -signal.SIGKILL
                if any(statuses.values()):  # those who wait for a peer that has left do so for long
                    end = min(end, time.monotonic() + 0.5)
        finally:
            self.jobs += 1
            whole = len(statuses) == self.ranks and set(statuses.values()) in ({0}, {REFUSED})
            if not whole or self.jobs == MAX_JOBS:
                self.end()
        failed = next((status for _, status in sorted(statuses.items()) if status), 0)
        assert failed or len(statuses) == self.ranks, f"not done after {seconds} s:\n{log.read_text()}"
        return failed

    def end(self) -> None:
        _GROUPS.pop(self.ranks, None)
        for orders in self.orders:
            orders.close()
        for process in self.processes:
            process.kill()
            process.join()


_GROUPS: dict[int, _Group] = {}


@atexit.register
def _end_groups() -> None:
    for group in list(_GROUPS.values()):
        with contextlib.suppress(OSError):
            group.end()


def call(function: Callable[..., Any], *arguments: Any, ranks: int, log: Path, seconds: float = DEADLINE_S) -> int:
    """Runs a function of an importable module on every rank; returns the status: what it returned, 1 if it raised."""
    if ranks not in _GROUPS:
        _GROUPS[ranks] = _Group(ranks)
    return _GROUPS[ranks].run(function, arguments, log, seconds)


def status(arguments: list[Any], *, ranks: int = 1, log: Path, seconds: float = DEADLINE_S) -> int:
    """Runs a training job to its end; returns its exit status."""
    return call(_train, [str(argument) for argument in arguments], ranks=ranks, log=log, seconds=seconds)


def train(arguments: list[Any], *, ranks: int = 1, log: Path, seconds: float = DEADLINE_S) -> None:
    """Runs a training job to its end.

    Raises:
        AssertionError: with what it printed, if it failed.
    """
    ended = status(arguments, ranks=ranks, log=log, seconds=seconds)
    assert ended == 0, f"exit status {ended}:\n{log.read_text()}"


def wait_for(happened: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
