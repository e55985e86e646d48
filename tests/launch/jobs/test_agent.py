"""Processes that end as they should: with the one that started them, at once after a mistake, quietly after Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.launch.jobs.agent import failure_lines, is_refusal
from headwater.launch.jobs.command import module_command

from .conftest import wait_until


def processes_in(directory: Path) -> set[int]:
    """The processes whose working directory this is."""
    found = set()
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if os.path.samefile(each / "cwd", directory) and "Z" not in (each / "stat").read_text().split()[2]:
                found.add(int(each.name))
        except OSError:
            continue
    return found


class Failure:
    def __init__(self, exitcode: int) -> None:
        self.exitcode, self.timestamp = exitcode, 0


def test_what_is_said_of_failures():
    failures = {3: Failure(-9), 1: Failure(1)}
    said = "rank 1 ended with status 1 (and 1 more): starting all again, 2 restarts are left"
    assert failure_lines(failures, 2) == said
    assert failure_lines({0: Failure(-9)}, 0) == "rank 0 was ended by SIGKILL: no restarts are left"
    assert not is_refusal(failures)
    assert is_refusal({**failures, 0: Failure(2)})


REFUSES = """
import os, sys
from pathlib import Path
start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
Path(f"started-{start}-{os.environ['RANK']}").touch()
sys.exit(2 if start else 7)
"""


def test_a_failure_is_tried_again_and_a_mistake_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HEADWATER_ENDED", str(tmp_path / "ended"))
    (tmp_path / "work.py").write_text(REFUSES)
    command = [sys.executable, "-m", "headwater.launch.jobs.agent", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "3", "--monitor-interval", "0.1", "work.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert {path.name.split("-")[1] for path in tmp_path.glob("started-*")} == {"0", "1"}
    assert "ended with status 7" in done.stderr
    assert "starting all again, 3 restarts are left" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "ended").read_text() == "refused\n"


SLEEPS = """
import os, signal, sys, time
from pathlib import Path
from headwater.train.lifetime import die_with_parent
die_with_parent()
save = lambda *_: (Path(f"saved-{os.environ['RANK']}").touch(), os._exit(0))
signal.signal(signal.SIGTERM, save), signal.signal(signal.SIGINT, save)
Path(f"begun-{os.environ['RANK']}").touch()
time.sleep(60)
"""


def test_processes_end_with_a_command_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """kill -9 of what started torchrun: it is told, and hands it on to its processes, which save. It is not the job:
    how it ends is not how the job ends."""
    monkeypatch.setenv("HEADWATER_ENDED", str(tmp_path / "ended"))
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    script = "from headwater.launch.jobs.command import run_module; run_module('sleeps', [], processes=2)"
    command = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2, 60)
        assert len(processes_in(tmp_path)) == 4
        command.kill()
        command.wait()
        wait_until(lambda: not processes_in(tmp_path), 20)
        assert len(list(tmp_path.glob("saved-*"))) == 2
        assert not (tmp_path / "ended").exists()
    finally:
        for number in processes_in(tmp_path):
            os.kill(number, signal.SIGKILL)
        command.wait()


def test_ctrl_c_lets_processes_save_and_is_one_line(tmp_path: Path):
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    command = module_command("sleeps", [], processes=2)
    agent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2 or agent.poll() is not None, 60)
    os.killpg(agent.pid, signal.SIGINT)  # as a terminal does
    _, said = agent.communicate(timeout=30)
    assert agent.returncode == 130, said
    assert len(list(tmp_path.glob("saved-*"))) == 2
    (line,) = said.splitlines()
    assert "told to stop (SIGINT)" in line
