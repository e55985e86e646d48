"""Processes of a trial: found by a mark in their environment, sent signals, waited for."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headwater.launch.jobs.command import module_command

MARK = "HEADWATER_SURVIVE"
"""The variable that marks every process of a trial, whoever started it."""

POLL_S = 0.02


@dataclass(frozen=True)
class Work:
    """`python -m MODULE ARGUMENTS` in so many processes."""

    module: str
    arguments: tuple[str, ...]
    ranks: int = 1


@dataclass(frozen=True)
class Harm:
    """A signal, and whom it is sent to: `all`, the `first` (torchrun's agent, a study's own process), or `one` of the
    others (a rank, a part, a worker)."""

    signal: signal.Signals
    whom: str

    def __str__(self) -> str:
        return f"-{self.signal.value} to {self.whom}"


HARMS = tuple(Harm(each, whom) for whom in ("all", "first", "one") for each in (signal.SIGKILL, signal.SIGTERM))


class Job:
    """A piece of work under way.

    Args:
        mark: of all its processes; begins with the campaign's own.
        log: what they print is added there.
        environment: what they are told beside this process's environment.
        prefix: words of a command that runs the work's.
    """

    def __init__(
        self,
        work: Work,
        *,
        mark: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.mark = mark
        command = [*prefix, *module_command(work.module, work.arguments, processes=work.ranks)]
        told = {"OMP_NUM_THREADS": "1", **os.environ, **(environment or {}), MARK: mark}
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self.first = subprocess.Popen(command, stdout=file, stderr=file, env=told, start_new_session=True)

    def status(self) -> int | None:
        """The first process's exit status; None while it runs."""
        return self.first.poll()

    def wait(self, seconds: float) -> bool:
        """Whether all its processes are gone within so many seconds."""
        end = time.monotonic() + seconds
        while self.status() is None or living(self.mark):
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S if self.status() is None else 10 * POLL_S)
        return True

    def send(self, harm: Harm, draw: random.Random) -> None:
        """Does harm to what is alive; a process that ends meanwhile is left out."""
        found = living(self.mark)
        others = sorted(pid for pid in found if pid != self.first.pid)
        one = draw.choice(self.ranks() or others or [self.first.pid])
        for pid in {"all": found, "first": [self.first.pid], "one": [one]}[harm.whom]:
            send(pid, harm.signal)

    def ranks(self) -> list[int]:
        """Those that torchrun has started."""
        return sorted(pid for pid in living(self.mark) if "RANK" in environment_of(pid))

    def end(self) -> None:
        """Ends what is left, without asking."""
        end_marked(self.mark)
        self.first.wait()


def living(mark: str) -> list[int]:
    """Every living process with a mark that begins so."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                told, state = (entry / "environ").read_bytes(), (entry / "stat").read_text()
            except OSError:
                continue  # it has ended, or is somebody else's
            marked = any(each.startswith(wanted) for each in told.split(b"\0"))
            if marked and state.rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(entry.name))
    return found


def end_marked(mark: str) -> None:
    """Kills every process with a mark that begins so: of a campaign that was itself killed, some may be left."""
    while found := living(mark):
        for pid in found:
            send(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, number)


def environment_of(pid: int) -> set[str]:
    """The names of the variables that a process was started with."""
    try:
        told = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return set()
    return {each.partition(b"=")[0].decode(errors="replace") for each in told.split(b"\0")}


def has_written(place: Path, since: float) -> bool:
    """Whether any file of a directory has changed after a time (of `time.time`)."""
    return any(changed_at(path) > since for path in place.rglob("*"))


def changed_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0  # it was renamed meanwhile
