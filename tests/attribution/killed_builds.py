"""Run by test_huggingface_index: builds of one index in forked processes, some of which are killed.

    python killed_builds.py '{"reference": DIR, "killed": [{"out": DIR, "ranks": 2, "kills": 5}], "arguments": [...]}'

The reference is built once on one rank. Each other directory is begun again and again, on one rank and on two in
turn, and killed at random moments of the time that the reference took; the last build, on `ranks` of which the last is
slow, comes to its end.
Everything is imported once, before the first fork, and nothing is computed in the parent.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time

import transformers  # noqa: F401

import headwater.attribution.index.build  # noqa: F401
from headwater.attribution.index.__main__ import main
from headwater.attribution.index.writer import IndexWriter


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def write_slowly() -> None:
    """From here on a shard takes a while: the other ranks are done long before this one."""
    write = IndexWriter.write

    def slow(self: IndexWriter, *arguments: object) -> None:
        time.sleep(0.5)
        write(self, *arguments)

    IndexWriter.write = slow


def begin(arguments: list[str], ranks: int, *, slow_rank: int | None = None) -> list[int]:
    """Starts a build on so many ranks; returns their processes."""
    port, started = free_port(), []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if ranks > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in place.items()})
            if rank == slow_rank:
                write_slowly()
            status = 1
            try:
                status = main(arguments)
            finally:
                sys.stdout.flush()
                os._exit(status)
        started.append(child)
    return started


def wait(processes: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def run(task: dict) -> None:
    moments = random.Random(0)
    began = time.perf_counter()
    assert wait(begin([*task["arguments"], f"out={task['reference']}"], 1)) == [0]
    whole = time.perf_counter() - began
    for each in task["killed"]:
        arguments = [*task["arguments"], f"out={each['out']}"]
        for turn in range(each["kills"]):
            processes = begin(arguments, 1 + turn % 2)
            time.sleep(moments.uniform(0.1, 1.0) * whole)
            for process in processes:
                os.kill(process, signal.SIGKILL)
            wait(processes)
        statuses = wait(begin(arguments, each["ranks"], slow_rank=each["ranks"] - 1))
        assert statuses == [0] * each["ranks"], statuses


run(json.loads(sys.argv[1]))
