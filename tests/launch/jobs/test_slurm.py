"""Scripts of `headwater launch` on a real SLURM cluster: told to stop early, put back, preempted, refused; an array."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.launch.ablate.array import launch_cells
from headwater.launch.ablate.settings import AblateSettings
from headwater.launch.jobs.job import Cluster, Job
from headwater.launch.jobs.launch import launch_job
from headwater.train.__main__ import main

from .conftest import Slurm, wait_until
from .training import WAITING, losses, write_training

pytestmark = pytest.mark.slow

CPUS = Cluster(gpu_request="none", exclusive=False)
HOST = platform.node().partition(".")[0]
TWO_NODES = f"{HOST},{HOST}b"
ELSEWHERE = replace(CPUS, options={"exclude": TWO_NODES})
RUN = ["out=run", "train.steps=12", "checkpoint.every=2", WAITING]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_training(tmp_path)
    return tmp_path


def printed(run: str | Path) -> str:
    return "\n".join(path.read_text() for path in sorted(Path(run, "logs").glob("slurm-*.out")))


def ended(run: str) -> int:
    """How many jobs have said how they ended."""
    return len(re.findall(r"^job \d+: (?:finished|what is wrong|given up)", printed(run), re.MULTILINE))


def told_by(slurm: Slurm, run: str | Path) -> Callable[[], str]:
    return lambda: f"{slurm.jobs()}\n{printed(run)}\n{slurm.logs()}"


def assert_as_alone(run: str | Path, alone: Path, steps: int) -> None:
    ours, theirs = losses(run), losses(alone)
    assert [step for step, _ in ours] == list(range(1, steps + 1)), printed(run)
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one process, left alone."""
    home = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        write_training(home)
        assert main(["config.yaml", "out=alone", "train.steps=12"]) == 0
    return home / "alone"


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory, slurm: Slurm) -> tuple[Path, int]:
    """A run on two nodes whose first job has a short limit, and its number: it is stopped while other tests run, since
    SLURM looks at the limits every 30 s alone."""
    home = tmp_path_factory.mktemp("chained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("OMP_NUM_THREADS", "1")
        write_training(home)
        cluster = replace(CPUS, options={"nodelist": TWO_NODES})
        given = {"nodes": 2, "gpus_per_node": 1, "slurm": True, "chain": True, "cluster": cluster}
        assert launch_job(Job(config="config.yaml", overrides=RUN, **given), submit=False) == 0
        # It is told when less than this and half a minute are left.
        return home, slurm.submit(Path("run/launch.sbatch"), "--time=00:02:00", "--signal=TERM@115")


def test_a_sweep_is_an_array_and_what_a_person_must_mend_is_not_tried_again(here: Path, slurm: Slurm, chained: object):
    """Two cells, each on a node; into the directory of one somebody has put something."""
    grid = {"train.hard_stop": [12, 6]}
    settings = AblateSettings(out="sweep", preset="config.yaml", overrides=["train.steps=12"], grid=grid)
    assert launch_cells(settings, Job(gpus_per_node=1, slurm=True, cluster=ELSEWHERE), submit=False) == 0
    Path("sweep/cells/hard_stop-6/checkpoints").mkdir()
    slurm.submit(Path("sweep/launch.sbatch"))
    wait_until(lambda: ended("sweep") == 2, 120, told_by(slurm, "sweep"))
    assert losses("sweep/cells/hard_stop-12")[-1][0] == 12, printed("sweep")
    good, bad = (path.read_text() for path in sorted(Path("sweep/logs").glob("slurm-*_*.out")))
    assert ": finished: step 12 of 12" in good
    assert bad.count("error: sweep/cells") == 1, bad
    assert "holds checkpoints, which was not written by this stage" in bad
    assert "must be mended (see above): not tried again" in bad
    assert "started again" not in bad
    assert not Path("sweep/cells/hard_stop-6/provenance.json").exists()


def at_the_fourth_step(slurm: Slurm) -> tuple[int, str, Callable[[], str]]:
    """A job that has come so far: its number, its machine, and what is to be told of it."""
    job = Job(config="config.yaml", overrides=RUN, gpus_per_node=1, slurm=True, cluster=ELSEWHERE)
    assert launch_job(job, submit=False) == 0
    number = slurm.submit(Path("run/launch.sbatch"))
    told = told_by(slurm, "run")
    wait_until(lambda: Path("at-4").exists(), 120, told)
    node = slurm("squeue", "--noheader", f"--job={number}", "--format=%N").strip()
    return number, node, told


def test_a_job_whose_machine_fails_goes_on_on_another(here: Path, slurm: Slurm, alone: Path, chained: object):
    """SLURM puts it back into the queue, as after a preemption: the script begins again, and the run where it was."""
    number, node, told = at_the_fourth_step(slurm)
    slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    wait_until(lambda: slurm.jobs().get(number) == "PENDING", 20, told)
    Path("go").touch()
    assert_goes_on(slurm, number, alone)


def test_a_job_that_is_preempted_goes_on_when_the_urgent_one_is_done(
    here: Path, slurm: Slurm, alone: Path, chained: object
):
    """A partition of higher priority takes the node: SLURM tells the job to stop, and puts it back into the queue."""
    number, node, told = at_the_fourth_step(slurm)
    Path("urgent.sh").write_text("#!/bin/sh\nsleep 2\n")
    urgent = slurm.submit(Path("urgent.sh"), "--partition=urgent", f"--nodelist={node}", "--output=/dev/null")
    wait_until(lambda: slurm.jobs().get(number) == "PENDING", 60, told)
    wait_until(lambda: urgent not in slurm.jobs(), 60, told)
    Path("go").touch()
    assert_goes_on(slurm, number, alone)


def assert_goes_on(slurm: Slurm, number: int, alone: Path) -> None:
    """A job that was put back begins once more, and ends as the run that was left alone."""
    told = told_by(slurm, "run")

    def begins() -> bool:
        if slurm.jobs()[number] == "PENDING":  # SLURM would wait two minutes
            slurm("scontrol", "update", f"JobId={number}", "StartTime=now")
            time.sleep(2)  # asked for again at once it would never begin
        return slurm.jobs()[number] == "RUNNING"

    wait_until(begins, 60, told)
    wait_until(lambda: number not in slurm.jobs(), 120, told)
    assert_as_alone("run", alone, 12)
    assert len(json.loads(Path("run/provenance.json").read_text())) == 2
    assert f"job {number}: finished: step 12 of 12" in printed("run")


def test_a_run_longer_than_its_limit_goes_on_by_itself(chained: tuple[Path, int], slurm: Slurm, alone: Path):
    """SLURM's own signal before the time limit reaches two nodes; the next job of the chain goes on, on as many."""
    home, first = chained
    run, told = home / "run", told_by(slurm, home / "run")
    wait_until(lambda: first not in slurm.jobs(), 80, told)
    (home / "go").touch()
    wait_until(lambda: not slurm.jobs(), 120, told)
    assert_as_alone(run, alone, 12)
    said = printed(run)
    stop = re.search(rf"job {first}: told to stop, and saved: (step \d+ of 12|nothing done yet)\n", said)
    assert stop is not None, said
    next_job = re.search(rf"job {first}: goes on in job (\d+)\n", said)
    assert next_job is not None, said
    assert f"job {next_job[1]}: finished: step 12 of 12" in said
    assert f"job {next_job[1]}:   job {first} came to {stop[1]} in" in said, "the summary names every job of the chain"
    assert not (run / "logs" / "chain").exists()
    starts = json.loads((run / "provenance.json").read_text())
    assert {start["world_size"] for start in starts} == {2}
