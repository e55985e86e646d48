"""The torchrun script on two machines: agents that meet, are told to stop, and come back when a host is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from headwater.launch.jobs.job import Job
from headwater.launch.jobs.launch import check, script_text
from headwater.train.__main__ import main

from .conftest import free_ports, listens, wait_until
from .hosts import Host, two_hosts
from .training import losses, write_training

LAYOUT = "corpus: {sources: [{kind: factbook}]}\ntrain: {global_batch: 16, micro_batch: 1}\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(LAYOUT)
    return path


def job(config: Path, *overrides: str, **options: object) -> Job:
    return Job(config=str(config), overrides=list(overrides), **options)  # type: ignore[arg-type]


WORKER = """
import os, signal, sys, time
import torch.distributed as dist
from pathlib import Path
def stop(*_):
    time.sleep(1)  # a checkpoint
    Path(f"saved-{dist.get_rank()}").touch()
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
dist.init_process_group("gloo")
ranks = [None] * dist.get_world_size()
dist.all_gather_object(ranks, dist.get_rank())
print("together", ranks, flush=True)
Path(f"ready-{dist.get_rank()}").touch()
time.sleep(60)
"""


def wait_for(*paths: str, seconds: float = 50) -> None:
    wait_until(lambda: all(Path(path).exists() for path in paths), seconds)


def agent(number: int) -> subprocess.Popen[bytes]:
    """The script launch.sh, as the machine with the address 127.0.0.`number` runs it."""
    environment = {**os.environ, "HEADWATER_HEAD": "127.0.0.1", "HEADWATER_ADDRESS": f"127.0.0.{number}"}
    with open(f"agent-{number}.log", "ab") as log:
        return subprocess.Popen(["bash", "launch.sh"], env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_two_agents_meet_log_by_rank_and_save_on_sigterm(config: Path):
    two = job(config, "out=run", nodes=2, gpus_per_node=1, port=free_ports(1)[0], restarts=0)
    text = script_text(check(two))
    Path("worker.py").write_text(WORKER)
    Path("launch.sh").write_text(text[: text.index("-m headwater.train")] + "worker.py\n")
    agents = [agent(1), agent(2)]
    try:
        wait_for("ready-0", "ready-1")
        logs = [path.read_text() for path in Path("run/logs").rglob("stdout.log")]
        assert logs == ["together [0, 1]\n"] * 2
        for each in agents:
            each.send_signal(signal.SIGTERM)
        wait_for("saved-0", "saved-1", seconds=15)
    finally:
        for each in agents:
            each.terminate()
            each.wait(20)


@pytest.mark.slow
def test_the_job_comes_back_when_a_host_is_lost(config: Path):
    """Two hosts train; the cable of one is pulled out, its agent is killed -9, and both come back. The losses are those
    of one process left alone."""
    config = write_training(config.parent)
    assert main([str(config), "out=alone"]) == 0
    port = free_ports(1)[0]
    two = job(config, "out=run", nodes=2, gpus_per_node=1, port=port)
    Path("launch.sh").write_text(script_text(check(two)))
    with two_hosts() as hosts:

        def start(host: Host) -> subprocess.Popen[bytes]:
            environment = {**os.environ, **host.environment}
            with open(f"{host.name}.log", "ab") as log:
                return subprocess.Popen(host.command("bash", "launch.sh"), env=environment, stdout=log, stderr=log)

        agents = [start(hosts[0])]
        try:
            if not hosts[1].namespace:  # the agent that comes first keeps the store where they meet
                wait_until(lambda: listens(port))
            agents.append(start(hosts[1]))
            wait_until(lambda: len(losses("run")) >= 6 or agents[0].poll() is not None)
            hosts[1].cable("down")
            agents[1].kill()
            agents[1].wait()
            assert len(losses("run")) < 30
            hosts[1].cable("up")
            agents[1] = start(hosts[1])
            assert [each.wait(150) for each in agents] == [0, 0], Path("first.log").read_text()[-3000:]
        finally:
            for each in agents:
                each.terminate()
                each.wait(20)
    ours, theirs = losses("run"), losses("alone")
    assert [step for step, _ in ours] == list(range(1, 31))
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)
    # The killed agent's workers went with it, and both agents started others.
    starts = json.loads(Path("run/provenance.json").read_text())
    assert [start["world_size"] for start in starts] == [2, 2]
