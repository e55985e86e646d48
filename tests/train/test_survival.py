"""The real torchrun on the packaged preset, killed with -9 at random moments and started again, from nothing.

One run is killed again and again, each time in another layout, and then finished: each test goes on where the one
before it left the run. Three kills; `KILLS=5 python -m pytest -s tests/train/test_survival.py` shows five.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from headwater.train.artifacts import RunDir
from headwater.train.callbacks.metrics import read_metrics

from ..jobs import DEADLINE_S, train, wait_for

PRESET = "pretrain/tiny"
STEPS = 20
SETTINGS = [f"train.steps={STEPS}", "checkpoint.every=4"]
LAYOUTS = [
    (2, []),
    (2, ["parallel.tensor=2"]),
    (2, ["zero.stage=3"]),
    (2, ["parallel.pipeline=2"]),
    (1, []),
    (2, ["parallel.tensor=2", "parallel.sequence=true"]),
]
KILLS = int(os.environ.get("KILLS", "3"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process that nothing interrupts."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train([PRESET, f"out={out}", *SETTINGS], log=out.parent / "log")
    return [line["loss"] for line in read_metrics(RunDir.at(out).metrics)]


def torchrun(out: Path, ranks: int, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "headwater.train", str(PRESET), f"out={out}", *SETTINGS, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(out.parent / "log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def processes_of(out: Path) -> list[int]:
    """Every living process with this run on its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words, state = (entry / "cmdline").read_bytes().split(b"\0"), (entry / "stat").read_text()
            except OSError:
                continue  # it has ended
            if f"out={out}".encode() in words and state.rpartition(")")[2].split()[0] != "Z":
                found.append(int(entry.name))
    return found


def kill(job: subprocess.Popen[bytes], out: Path) -> None:
    """Kills torchrun's process group. Its workers have sessions of their own: they must go with it."""
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    wait_for(lambda: not processes_of(out), 20)


def count_lines(run: RunDir) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def run_and_kill(out: Path, number: int, ranks: int, overrides: list[str], chance: random.Random) -> None:
    """Start number `number` of KILLS, killed: most often some steps further on, else anywhere before it trains."""
    run, began = RunDir.at(out), time.monotonic()
    before = run.metrics.stat().st_mtime_ns if run.metrics.exists() else 0
    job = torchrun(out, ranks, *overrides)
    limit = chance.uniform(0, 8) if chance.random() < 0.25 else DEADLINE_S
    step = STEPS * (number + chance.random()) / KILLS

    def due() -> bool:
        trains = run.metrics.exists() and run.metrics.stat().st_mtime_ns > before
        arrived = trains and count_lines(run) >= step
        return arrived or time.monotonic() - began > limit or job.poll() is not None

    wait_for(due)
    time.sleep(chance.uniform(0, 0.1))
    kill(job, out)
    seconds = time.monotonic() - began
    print(f"{' '.join(overrides) or 'as it is'} x {ranks}: killed after {seconds:.1f} s, {count_lines(run)} lines")


def compare(out: Path, expected: list[float], steps: int) -> None:
    lines = read_metrics(RunDir.at(out).metrics)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    losses, unbroken = np.array([line["loss"] for line in lines]), np.array(expected[:steps])
    if steps:
        print(f"{steps} lines, largest relative difference {np.abs(losses / unbroken - 1).max():.1e}")
    np.testing.assert_allclose(losses, unbroken, rtol=1e-5)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of all tests here."""
    return tmp_path_factory.mktemp("killed") / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment(out: Path, expected: list[float], number: int):
    """What is left is the beginning of the unbroken run: no step twice, none left out."""
    run_and_kill(out, number, *LAYOUTS[number % len(LAYOUTS)], random.Random(number))
    compare(out, expected, count_lines(RunDir.at(out)))


@pytest.mark.slow
def test_finished_after_the_kills(out: Path, expected: list[float]):
    ranks, overrides = LAYOUTS[KILLS % len(LAYOUTS)]
    assert torchrun(out, ranks, *overrides).wait(120) == 0, (out.parent / "log").read_text()[-3000:]
    compare(out, expected, STEPS)
    assert not list(out.rglob("*.part"))
