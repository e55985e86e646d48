"""What goes wrong around a process: disks, locks, clocks, memory. Each is made, comes at a moment, and is mended.

A full disk is a small tmpfs, where this user may mount one, and a rank is killed by a memory cgroup (version 1), where
there are some; what else the kernel would say is said by `fault.c`, which stands between the process and the C library.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from headwater.configs.errors import UserError
from headwater.launch.bench.survival.processes import Job, send

CGROUPS = Path("/sys/fs/cgroup/memory")
DISK_BYTES = 64 << 20
DAY_S = 86400


@dataclass(frozen=True)
class Setting:
    """What a trial's processes are started with.

    Attributes:
        place: the trial's directory.
        trigger: a file: while it is there the fault is on.
    """

    place: Path
    trigger: Path
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        number: what the system says of it (errno); 0: nothing, as of a kill.
        ends: whether the work cannot go on; else it does, or says so where it meets an error with a number.
        several: whether it is of one rank of several.
        variables: of fault.c; None: it is made in another way.
    """

    name: str
    number: int = 0
    ends: bool = True
    several: bool = False
    variables: dict[str, str] | None = None

    @property
    def said(self) -> str:
        """What the error has to say."""
        return os.strerror(self.number) if self.number else ""


FAULTS = {
    each.name: each
    for each in (
        Fault("full disk", errno.ENOSPC),
        Fault("input/output error", errno.EIO, variables={"ERRNO": str(errno.EIO)}),
        Fault("quota", errno.EDQUOT, variables={"ERRNO": str(errno.EDQUOT)}),
        Fault("read-only", errno.EROFS, variables={"ERRNO": str(errno.EROFS)}),
        Fault("share gone", errno.ESTALE, variables={"ERRNO": str(errno.ESTALE), "READS": "1"}),
        Fault("no locks", ends=False, variables={"FLOCK": str(errno.ENOLCK)}),
        Fault("clock jumps", ends=False, variables={"CLOCK": ""}),
        Fault("/dev/shm full", errno.ENOSPC, ends=False),
        Fault("out of memory", several=True),
    )
}


@contextmanager
def set_up(fault: Fault, place: Path, home: Path, draw: random.Random) -> Iterator[Setting]:
    """Makes a trial's directory, and what its processes are to be started with.

    Args:
        home: of the campaign, for the compiled fault.c.
    """
    trigger = place.with_name(f"{place.name}.fault")
    trigger.unlink(missing_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    variables = dict(fault.variables or {})
    if "CLOCK" in variables:
        variables["CLOCK"] = str(draw.choice((-DAY_S, DAY_S)))
    disk = fault.name == "full disk" and can_mount() and mount("-o", f"size={DISK_BYTES}", str(place))
    if fault.name == "full disk" and not disk:
        variables = {"ERRNO": str(fault.number)}
    try:
        if variables:
            told = {f"HEADWATER_FAULT_{name}": value for name, value in variables.items()}
            told["HEADWATER_FAULT_TRIGGER"] = str(trigger)
            told["HEADWATER_FAULT_UNDER"] = os.path.realpath(place)
            told["LD_PRELOAD"] = str(preloaded(home))
            yield Setting(place, trigger, told)
        elif fault.name == "/dev/shm full":
            full = "mount -t tmpfs -o size=64k none /dev/shm && head -c 1M /dev/zero >/dev/shm/full 2>&-"
            yield Setting(place, trigger, prefix=("unshare", "-m", "sh", "-c", f'{full}; exec "$@"', "-"))
        else:
            yield Setting(place, trigger)
    finally:
        trigger.unlink(missing_ok=True)
        if disk:
            unmount(place)


def bring_on(fault: Fault, setting: Setting, job: Job, draw: random.Random) -> None:
    """The fault begins."""
    if fault.name == "full disk" and not setting.environment:
        fill(setting.place / "filler")
    elif fault.several:
        use_up_memory(job, draw)
    else:
        setting.trigger.touch()


def mend(setting: Setting) -> None:
    """The fault is over: the disk has room again."""
    setting.trigger.unlink(missing_ok=True)
    (setting.place / "filler").unlink(missing_ok=True)


def fill(file: Path) -> None:
    """Takes all room of a file system, but for less than a block.

    Raises:
        UserError: it is not one of its own: the room is everybody's.
    """
    if not os.path.ismount(file.parent):
        raise UserError(f"{file.parent} is no disk of its own", expected="a small tmpfs", fix="start the trial again")
    with suppress(OSError), open(file, "wb", buffering=0) as taken:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while taken.write(bytes(size)) == size:
                    pass


def use_up_memory(job: Job, draw: random.Random) -> None:
    """The kernel ends one rank for want of memory; where there is no memory cgroup, a SIGKILL does, as it would."""
    ranks = job.ranks()
    if not ranks:
        return
    one = draw.choice(ranks)
    group = CGROUPS / f"headwater-{job.first.pid}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(one))
        (group / "memory.limit_in_bytes").write_text("65536")
    except OSError:
        send(one, signal.SIGKILL)
    end = time.monotonic() + 10
    while one in job.ranks() and time.monotonic() < end:
        time.sleep(0.02)
    if one in job.ranks():  # it asks for no more memory
        send(one, signal.SIGKILL)
    with suppress(OSError):
        group.rmdir()


def mount(*arguments: str) -> bool:
    made = subprocess.run(["mount", "-t", "tmpfs", *arguments[:-1], "none", arguments[-1]], capture_output=True)
    return made.returncode == 0


def unmount(place: Path) -> None:
    """Takes a trial's disk away, if there is one: of a campaign that was itself killed it is left."""
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@cache
def can_mount() -> bool:
    """Whether this user may mount a file system."""
    tried = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(tried, capture_output=True).returncode


def available() -> dict[str, Fault]:
    """The faults that can be made here."""
    lacking = set()
    if shutil.which("cc") is None:
        lacking |= {name for name, fault in FAULTS.items() if fault.variables is not None}
    if not can_mount():
        lacking |= {"/dev/shm full"} | ({"full disk"} if shutil.which("cc") is None else set())
    return {name: fault for name, fault in FAULTS.items() if name not in lacking}


def preloaded(home: Path) -> Path:
    """The shared object of fault.c, compiled once."""
    made = home / "fault.so"
    if not made.exists():
        part = made.with_suffix(f".{os.getpid()}.part")
        source = Path(__file__).with_name("fault.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(part), str(source), "-ldl"], check=True)
        os.replace(part, made)
    return made.absolute()
