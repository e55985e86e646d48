"""A run that was stopped, killed or moved to another layout ends as one that never was."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.launch.bench.survival.compare import run_differences
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import newest

from ..jobs import Job, free_port, train, wait_for

LONG = ("train.steps=40", "checkpoint.every=4", "facts.schedule.count=6", "callbacks.probes.every=10")


@pytest.fixture(scope="module")
def unbroken(fresh: Callable[[], Path], config: Path, tmp_path_factory) -> RunDir:
    """Forty updates in one go."""
    run = RunDir.at(tmp_path_factory.mktemp("unbroken") / "run")
    train([config, f"out={run.path}", *LONG], log=run.path.parent / "log")
    return run


@pytest.fixture
def begun(unbroken: RunDir, tmp_path: Path) -> RunDir:
    """A run with the corpus of `unbroken`, and nothing trained."""
    trained = ("checkpoints", "ledger", "metrics.jsonl", "probes.parquet", "config.yaml", "provenance.json")
    return RunDir.at(shutil.copytree(unbroken.path, tmp_path / "run", ignore=shutil.ignore_patterns(*trained)))


def same(run: RunDir, expected: RunDir, tolerance: float = 0.0) -> None:
    """Each step's metrics once and equal, ledger files equal to the byte, probes and last weights equal."""
    assert [line["step"] for line in read_metrics(run.metrics)] == list(range(1, 41))
    assert run_differences(run, expected, tolerance) == []


def lines_written(run: RunDir) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def until_lines(run: RunDir, count: int, job: Job) -> None:
    """Waits for so many lines of metrics, or for the job to end by itself."""
    wait_for(lambda: lines_written(run) >= count or not job.running)


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_0(unbroken, begun, config, tmp_path):
    run, log = begun, tmp_path / "log"
    arguments = [config, f"out={run.path}", *LONG, "checkpoint.every=0"]
    job = Job.training(arguments, log=log)
    until_lines(run, 7, job)
    job.signal(signal.SIGTERM)
    assert job.wait() == 0, log.read_text()
    stopped = newest(run.checkpoints)
    assert stopped is not None
    assert 7 <= stopped.step < 40
    assert stopped.step == len(read_metrics(run.metrics))
    train(arguments, log=log)
    same(run, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True], ids=["foreground", "background"])
def test_killed_at_random_moments(unbroken, config, tmp_path, asynchronous):
    run, log = RunDir.at(tmp_path / "run"), tmp_path / "log"
    arguments = [config, f"out={run.path}", *LONG, f"checkpoint.asynchronous={str(asynchronous).lower()}"]
    chance = random.Random(5 + asynchronous)
    for _ in range(4):
        job = Job.training(arguments, log=log)
        # The corpus' building and the start of training are moments like any other.
        if chance.random() < 0.75:
            until_lines(run, lines_written(run) + 1, job)
        time.sleep(chance.random() * 0.7)
        job.signal(signal.SIGKILL)
        job.wait()
    train(arguments, log=log)
    same(run, unbroken)


@pytest.mark.slow
def test_killed_before_the_first_checkpoint(unbroken, begun, config, tmp_path):
    """What callbacks had written by then is not written twice."""
    run, log = begun, tmp_path / "log"
    arguments = [config, f"out={run.path}", *LONG]
    job = Job.training([*arguments, "checkpoint.every=1"], log=log)
    wait_for(lambda: run.probes.exists() or not job.running)
    job.signal(signal.SIGKILL)
    job.wait()
    if run.checkpoints.exists():  # the first one may have been on its way
        shutil.rmtree(run.checkpoints)
    train(arguments, log=log)
    same(run, unbroken)


@pytest.mark.slow
def test_killed_and_moved_to_another_layout_each_time(unbroken, begun, config, tmp_path):
    run, log = begun, tmp_path / "log"
    layouts = [
        (2, ["parallel.tensor=2"]),
        (2, ["zero.stage=3"]),
        (2, ["parallel.pipeline=2"]),
        (1, ["zero.stage=0"]),
        (2, ["parallel.tensor=2", "parallel.sequence=true", "zero.stage=2"]),
    ]
    arguments = [config, f"out={run.path}", *LONG]
    for number, (ranks, overrides) in enumerate(layouts):
        job = Job.training([*arguments, *overrides], ranks=ranks, log=log)
        until_lines(run, 7 * (number + 1), job)
        job.signal(signal.SIGKILL)
        assert job.wait() == 0, log.read_text()
    train(arguments, log=log)
    same(run, unbroken, tolerance=1e-5)


@pytest.mark.slow
def test_sigterm_under_torchrun_stops_all_ranks(unbroken, begun, config, tmp_path):
    """The real launcher: SIGTERM to it reaches every rank, all agree on a step, and the run goes on elsewhere."""
    run = begun
    arguments = [str(config), f"out={run.path}", *LONG]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "-m", "headwater.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: lines_written(run) >= 5 or launcher.poll() is not None)
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(60)
    finally:
        launcher.kill()
        launcher.wait()
    stopped = newest(run.checkpoints)
    assert stopped is not None, (tmp_path / "log").read_text()
    assert stopped.step == len(read_metrics(run.metrics)) >= 5
    train(arguments, log=tmp_path / "again")
    same(run, unbroken, tolerance=1e-5)
