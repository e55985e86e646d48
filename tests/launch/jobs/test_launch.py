"""The scripts of `headwater launch`: what stands in them, and two torchrun agents on loopback addresses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.configs import ConfigError, UserError
from headwater.launch.jobs.job import Job
from headwater.launch.jobs.launch import check, launch_job, script_text
from headwater.launch.jobs.slurm import limit_seconds
from headwater.train.__main__ import main
from headwater.train.callbacks.metrics import read_metrics

LAYOUT = "model: {layers: 2, heads: 4, kv_heads: 4}\ntrain: {global_batch: 16, micro_batch: 1}\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(LAYOUT)
    return path


def job(config: Path, *overrides: str, **options: object) -> Job:
    return Job(config=str(config), overrides=list(overrides), **options)  # type: ignore[arg-type]


def assert_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_torchrun_script_has_the_rendezvous_and_the_run(config: Path):
    one = job(config, "out=runs/a b", "train.steps=7", nodes=2, gpus_per_node=4, restarts=5, port=1234)
    assert launch_job(one, submit=False) == 0
    script = Path("runs/a b/launch.sh")
    assert_parses(script)
    assert os.access(script, os.X_OK)
    text = script.read_text()
    words = shlex.split(text.partition("exec ")[2].replace("\\\n", " "))
    for option, value in {
        "--nnodes": "2",
        "--nproc-per-node": "4",
        "--max-restarts": "5",
        "--rdzv-backend": "c10d",
        "--log-dir": "runs/a b/logs",
        "--shutdown-timeout": "570",
        "-m": "torch.distributed.run",
    }.items():
        assert words[words.index(option) + 1] == value
    assert words[-4:] == ["headwater.train", str(config), "out=runs/a b", "train.steps=7"]
    assert ":1234" in text


def test_one_machine_needs_no_address(config: Path):
    launch_job(job(config, "out=run", nodes=1, gpus_per_node=2), submit=False)
    text = Path("run/launch.sh").read_text()
    assert_parses(Path("run/launch.sh"))
    assert "--standalone" in text
    assert "HEADWATER_" not in text


def test_torchrun_script_refuses_to_start_without_the_first_machine(config: Path):
    launch_job(job(config, "out=run", nodes=2, gpus_per_node=1), submit=False)
    environment = {name: value for name, value in os.environ.items() if name != "HEADWATER_HEAD"}
    result = subprocess.run(["bash", "run/launch.sh"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "first machine" in result.stderr


def test_slurm_script_has_what_slurm_reads(config: Path):
    slurm = job(
        config,
        "out=runs/a b",
        nodes=4,
        gpus_per_node=4,
        slurm=True,
        time_limit="1-02:00:00",
        notice_minutes=15,
        partition="long",
    )
    launch_job(slurm, submit=False)
    script = Path("runs/a b/launch.sbatch")
    assert_parses(script)
    assert Path("runs/a b/logs").is_dir()
    directives = [line[len("#SBATCH ") :] for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--time=1-02:00:00",
        "--signal=TERM@900",
        "--partition=long",
        "--requeue",
        "--open-mode=append",
    } <= set(directives)
    assert not any("account" in directive for directive in directives)
    assert f"--output='{Path.cwd()}/runs/a b/logs/slurm-%j.out'" in directives
    assert "--shutdown-timeout 870" in script.read_text()
    assert "scontrol show hostnames" in script.read_text()


def test_slurm_script_starts_its_agents_again(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """When srun fails, as often as asked; not when the time is nearly over."""
    (tmp_path / "bin").mkdir()
    for name, does in {"scontrol": "echo here", "srun": "echo x >> calls; exit 7"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "here")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    launch_job(job(config, "out=run", gpus_per_node=2, slurm=True, restarts=2), submit=False)
    script = Path("run/launch.sbatch").read_text()
    assert subprocess.run(["bash", "-c", script], check=False).returncode == 7
    assert Path("calls").read_text().split() == ["x"] * 3
    Path("calls").unlink()
    assert subprocess.run(["bash", "-c", f"SECONDS=85800\n{script}"], check=False).returncode == 7
    assert Path("calls").read_text().split() == ["x"]


def test_submit_calls_sbatch_with_the_script(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    slurm = job(config, "out=run", nodes=1, gpus_per_node=2, slurm=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="sbatch is not on this machine"):
        launch_job(slurm, submit=True)
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "sbatch"
    fake.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/called\nexit 3\n')
    fake.chmod(0o755)
    assert launch_job(slurm, submit=True) == 3
    assert (tmp_path / "called").read_text() == "run/launch.sbatch\n"


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["train.global_batch=6"], {"nodes": 2, "gpus_per_node": 2}, "train.global_batch = 6"),
        (["parallel.tensor=4"], {"nodes": 2, "gpus_per_node": 2}, "at most gpus_per_node"),
        (["parallel.pipeline=2"], {"nodes": 1, "gpus_per_node": 3}, "gpus = 3"),
        (["train.stops=6"], {}, "did you mean train.steps"),
    ],
)
def test_a_layout_that_cannot_work_writes_nothing(config: Path, overrides: list[str], options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        launch_job(job(config, "out=run", *overrides, **options), submit=False)
    assert not Path("run").exists()


def test_bad_times_are_refused(config: Path):
    assert limit_seconds("1-00:00:01") == 86401
    with pytest.raises(UserError, match="time-limit"):
        limit_seconds("24h")
    with pytest.raises(UserError, match="--notice"):
        check(job(config, slurm=True, time_limit="00:10:00", notice_minutes=10))
    with pytest.raises(UserError, match="needs a configuration"):
        check(Job(config=None))


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


def wait_until(happened: Callable[[], bool], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def agent(number: int) -> subprocess.Popen[bytes]:
    """The script launch.sh, as the machine with the address 127.0.0.`number` runs it."""
    environment = {**os.environ, "HEADWATER_HEAD": "127.0.0.1", "HEADWATER_ADDRESS": f"127.0.0.{number}"}
    with open(f"agent-{number}.log", "ab") as log:
        return subprocess.Popen(["bash", "launch.sh"], env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_two_agents_meet_log_by_rank_and_save_on_sigterm(config: Path):
    two = job(config, "out=run", nodes=2, gpus_per_node=1, port=free_port(), restarts=0)
    text = script_text(two, check(two))
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


TRAINING = """
corpus:
  sources: [{kind: jsonl, path: texts.jsonl}]
  tokenizer: {vocab_size: 320}
  max_tokens: 48
  min_tokens: 5
  seq_len: 64
facts: {people: 0, distractors: 0}
model: {layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn_hidden: 48}
train: {steps: 30, global_batch: 4, micro_batch: 2}
checkpoint: {every: 5}
callbacks: {metrics: {tensorboard: false}}
"""


def losses(run: str) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(Path(run, "metrics.jsonl"))]


@pytest.mark.slow
def test_the_job_comes_back_when_an_agent_and_its_workers_are_killed(config: Path):
    """Two agents train; one is killed -9 and started again. The losses are those of one process left alone."""
    words = ["river", "stone", "cloud", "ember", "willow", "harbor", "lantern", "meadow"]
    texts = [" ".join(words[(number * k) % 8] for k in range(5, 25)) for number in range(1, 90)]
    Path("texts.jsonl").write_text("".join(f'{{"text": "{text} {number}"}}\n' for number, text in enumerate(texts)))
    config.write_text(TRAINING)
    assert main([str(config), "out=alone"]) == 0
    port = free_port()
    two = job(config, "out=run", nodes=2, gpus_per_node=1, port=port)
    Path("launch.sh").write_text(script_text(two, check(two)))
    agents = [agent(1)]
    try:
        # Both addresses are this machine's: the agent that comes first keeps the store where they meet.
        wait_until(lambda: listens(port))
        agents.append(agent(2))
        wait_until(lambda: len(losses("run")) >= 6 or agents[0].poll() is not None)
        agents[1].kill()
        agents[1].wait()
        assert len(losses("run")) < 30
        agents[1] = agent(2)
        assert [each.wait(150) for each in agents] == [0, 0], Path("agent-1.log").read_text()[-3000:]
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
