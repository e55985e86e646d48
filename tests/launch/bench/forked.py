"""Jobs of a campaign in forked processes, with everything imported: what a process starts with costs seconds."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from headwater.launch.bench.survival.processes import Harm, Job, Work

from ... import jobs


def main(module: str, arguments: list[str]) -> int:
    """`python -m MODULE ARGUMENTS` in this process."""
    if module == "headwater.train":
        from headwater.train.__main__ import main as train

        return train(arguments)
    if module == "headwater.attribution.index":
        from headwater.attribution.index.__main__ import main as index

        return index(arguments)
    from headwater.launch.cli import main as command

    with mock.patch.object(sys, "argv", ["headwater", *arguments]):
        try:
            command()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def start(work: Work, *, mark: str, log: Path, environment: dict[str, str], prefix: tuple[str, ...]) -> Any:
    """As `Job`; what needs another environment is a process of its own. There is no torchrun: the first rank stands for
    it."""
    if environment or prefix:
        return Job(work, mark=mark, log=log, environment=environment, prefix=prefix)
    log.parent.mkdir(parents=True, exist_ok=True)
    return Forked(jobs.Job(main, work.module, list(work.arguments), ranks=work.ranks, log=log))


PATIENCE_S = 5.0


class Forked:
    """A job of `tests.jobs` as a campaign asks for one."""

    def __init__(self, job: jobs.Job) -> None:
        self.job, self.first = job, job.processes[0]

    def status(self) -> int | None:
        """The first exit status that is not 0 once all have ended."""
        if self.job.running:
            return None
        return next((each.exitcode for each in self.job.processes if each.exitcode), 0)

    def wait(self, seconds: float) -> bool:
        """As torchrun, ends the others when one has failed, after seconds in which they may say something."""
        end = time.monotonic() + seconds
        while self.job.running and time.monotonic() < end:
            if any(each.exitcode for each in self.job.processes):
                end = min(end, time.monotonic() + PATIENCE_S)
            time.sleep(0.01)
        if any(each.exitcode for each in self.job.processes):
            self.job.signal(signal.SIGKILL)
            for each in self.job.processes:
                each.join()
        return not self.job.running

    def ranks(self) -> list[int]:
        alive = [each.pid for each in self.job.processes if each.is_alive()]
        return alive if len(self.job.processes) > 1 else []

    def send(self, harm: Harm, draw: random.Random) -> None:
        alive = [each for each in self.job.processes if each.is_alive()]
        chosen = {"all": alive, "first": alive[:1], "one": draw.sample(alive, min(1, len(alive)))}[harm.whom]
        for each in chosen:
            os.kill(each.pid, harm.signal)

    def end(self) -> None:
        self.job.signal(signal.SIGKILL)
        self.wait(10)
