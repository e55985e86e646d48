"""A SLURM cluster of some nodes on this machine: the real daemons, of the packages slurmctld, slurmd, slurm-client and
munge. They run as whoever runs the tests, with files of their own in a temporary directory, and end with the tests."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")

# torchrun's processes ask for the first node's address, so its name is this machine's.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=0
MpiDefault=none
MailProg=/bin/true
KillWait=5
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1\n"
NODES = 4


class Slurm:
    """The cluster's commands."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: Path, *options: str) -> int:
        """The new job's number."""
        return int(self("sbatch", "--parsable", *options, str(script)))

    def jobs(self) -> dict[int, str]:
        """What waits or runs: number and state."""
        lines = [line.split() for line in self("squeue", "--noheader", "--format=%A %T").splitlines()]
        return {int(number): state for number, state in lines}

    def logs(self) -> str:
        """What the daemons say at their end, for a failure's message."""
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self.home.glob("*.log")))


def wait_until(happened: Callable[[], object], seconds: float = 60, told: Callable[[], str] = lambda: "") -> None:
    """Returns when something has happened.

    Args:
        told: for the message when it does not.
    """
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"it did not happen in time\n{told()}"
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    lacking = [name for name in DAEMONS if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge")
    home = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets have short paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(home / "slurm.conf"))
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            cluster = Slurm(home)
            try:
                begin(home, daemons)
                wait_until(lambda: cluster("sinfo", "-h", "-o", "%D %T").split() == [str(NODES), "idle"], 40)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                # Not what is tested: a machine whose name leads nowhere, or one that lets nobody listen.
                pytest.skip(f"SLURM's daemons do not come up on this machine: {error}\n{cluster.logs()}")
            yield cluster
            cluster("scancel", f"--user={os.getuid()}")  # what a failed test has left
            wait_until(lambda: not cluster.jobs(), 60, cluster.logs)
        finally:
            for each in reversed(daemons):
                each.send_signal(signal.SIGTERM)
            for each in reversed(daemons):
                try:
                    each.wait(10)
                except subprocess.TimeoutExpired:
                    each.kill()
                    each.wait()
            shutil.rmtree(home, ignore_errors=True)


def begin(home: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Starts the daemons in the foreground, and adds each to the list."""

    def start(*command: str) -> None:
        with open(home / f"{command[0]}-{len(daemons)}.out", "wb") as log:
            daemons.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    home.chmod(0o755)
    (home / "key").write_bytes(os.urandom(128))
    (home / "key").chmod(0o400)
    files = [f"--{name}={home / file}" for name, file in MUNGE.items()]
    start("munged", "--foreground", "--force", *files)
    wait_until((home / "munge.socket").exists, 10)
    host = platform.node().partition(".")[0]
    port, *ports = free_ports(1 + NODES)
    nodes = [host, *(f"{host}{letter}" for letter in "bcdefgh"[: NODES - 1])]
    lines = [NODE.format(node=node, host=host, port=each) for node, each in zip(nodes, ports, strict=True)]
    head = CONFIGURATION.format(home=home, host=host, port=port, user=pwd.getpwuid(os.getuid()).pw_name)
    (home / "slurm.conf").write_text(head + "".join(lines))
    (home / "state").mkdir()
    start("slurmctld", "-D", "-i")
    wait_until(lambda: listens(port), 20, lambda: (home / "slurmctld-1.out").read_text()[-2000:])
    for node in nodes:
        (home / f"spool-{node}").mkdir()
        start("slurmd", "-D", "-N", node)


MUNGE = {
    "socket": "munge.socket",
    "key-file": "key",
    "pid-file": "munge.pid",
    "log-file": "munge.log",
    "seed-file": "munge.seed",
}
