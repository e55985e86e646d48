"""Processes of parts that are forked from one that has imported everything, instead of started anew.

`pool.begin` is replaced by `begin`: a part still has a process of its own, with its log, its exit status and its lock.
"""

from __future__ import annotations

import runpy
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from unittest import mock

from headwater.launch.parts.part import Part

from ..jobs import Job, wait_for
from .demo_process import pretrain_here


def main_of(module: str, arguments: Sequence[str]) -> int:
    """`python -m MODULE ARGUMENTS`, which pretrains in the process itself; the exit status."""
    with (
        mock.patch("headwater.launch.jobs.command.run_module", pretrain_here),
        mock.patch.object(sys, "argv", [module, *arguments]),
    ):
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


class Running:
    """As much of a `Popen` as the pool needs."""

    def __init__(self, part: Part, cores: str) -> None:
        part.path.mkdir(parents=True, exist_ok=True)
        self.job = Job(main_of, part.module, [str(part.path), cores], log=part.log)

    def terminate(self) -> None:
        self.job.signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.job.wait()


Ended = SimpleQueue[tuple[Part, str, int]]


def begin(part: Part, cores: str, ended: Ended) -> Running:
    """Stands in for `pool.begin`."""
    running = Running(part, cores)
    threading.Thread(target=lambda: ended.put((part, cores, running.wait())), daemon=True).start()
    return running


def killed_when(happened: Callable[[Path], bool]) -> Callable[[Part, str, Ended], Running]:
    """Another one, under which the first part is killed by SIGKILL as soon as `happened(PATH)`, and whoever runs it is
    broken off with it.
    """

    def begin_and_kill(part: Part, cores: str, ended: Ended) -> Running:
        job = Running(part, cores).job

        def reached() -> bool:
            assert job.running, part.log.read_text()[-3000:]
            return happened(part.path)

        wait_for(reached)
        job.signal(signal.SIGKILL)
        job.wait()
        assert [process.exitcode for process in job.processes] == [-signal.SIGKILL]
        raise KeyboardInterrupt

    return begin_and_kill
