"""`headwater bench survive`: a short campaign, and that its comparisons notice what they are for."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.configs.errors import UserError
from headwater.launch.bench import survive
from headwater.launch.bench.parser import run_benchmark
from headwater.launch.bench.survival import faults, trials
from headwater.launch.bench.survival.activities import ACTIVITIES
from headwater.launch.bench.survival.campaign import Campaign, as_markdown, line_of, table
from headwater.launch.bench.survival.compare import file_differences, run_differences
from headwater.launch.bench.survival.faults import (
    FAULTS,
    available,
    bring_on,
    can_mount,
    fill,
    mend,
    mount,
    set_up,
    use_up_memory,
)
from headwater.launch.bench.survival.processes import Harm, Job, Work, end_marked, living
from headwater.launch.bench.survival.trials import Outcome, Trial, ending_problems
from headwater.train.artifacts import RunDir

from .forked import start


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one campaign, whose parts the tests make one after the other."""
    return tmp_path_factory.mktemp("survive")


def campaign(home: Path, *only: str, **given: object) -> Campaign:
    return Campaign(home, only=only, start=start, **given)  # type: ignore[arg-type]


def assert_survived(outcomes: list[Outcome]) -> None:
    assert not [line_of(each) for each in outcomes if each.lost]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["corpus", "training", "index"])
def test_a_kill(home: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each; in a longer campaign restarts are killed as well."""
    monkeypatch.setattr(trials, "AGAIN", 0.0)
    assert_survived(campaign(home, kind).run(kills=1, faults=0))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full disk", "out of memory"])
def test_faults_of_a_training(home: Path, fault: str) -> None:
    if fault not in available():
        pytest.skip("needs the right to mount a file system, or a compiler")
    assert_survived(campaign(home, "training", fault).run(kills=0, faults=1))


@pytest.mark.slow
def test_a_disk_that_fails_in_a_build(home: Path) -> None:
    """In a process of its own: fault.c stands between it and the C library."""
    if "input/output error" not in available():
        pytest.skip("needs a C compiler")
    assert_survived(campaign(home, "corpus", "input/output error").run(kills=0, faults=1))


@pytest.mark.slow
def test_torchrun_killed(home: Path) -> None:
    """The real launcher: its agent is killed, and the ranks, which have sessions of their own, go with it."""
    whole = campaign(home)
    activity = ACTIVITIES["training"]
    whole.unbroken(activity)
    trial = Trial(home, f"{home}/", whole.trial.whole)
    place = trial.place("torchrun")
    trial.begin(activity, place)
    job = trial.job("torchrun", trial.work(activity, place, activity.layouts[1]))
    metrics = RunDir.at(place / "run").metrics
    end = time.monotonic() + 100
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 5) and time.monotonic() < end:
        assert job.status() is None, trial.said("torchrun")
        time.sleep(0.02)
    assert len(job.ranks()) == 2
    job.send(Harm(signal.SIGKILL, "first"), random.Random(0))
    assert job.wait(20), "the ranks outlive it"
    assert job.status() == -signal.SIGKILL
    again = start(trial.work(activity, place, activity.layouts[0]), mark="", log=trial.log("again"), **NOTHING)
    assert again.wait(100)
    assert activity.differences(place, whole.trial.place("training-unbroken"), False) == []


NOTHING: dict = {"environment": {}, "prefix": ()}


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign that was killed goes on with the trials that have no outcome; its figures are of all."""
    made = []

    def make(self: Campaign, name: str, kind: str, fault: str) -> Outcome:
        made.append(name)
        if len(made) == 4:
            raise KeyboardInterrupt
        return Outcome(name, kind, fault or "killed", kills=not fault, lost=["a step"] if kind == "study" else [])

    monkeypatch.setattr(Campaign, "make", make)
    arguments = ["--kills", "6", "--faults", "2", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "s.json")]
    with pytest.raises(KeyboardInterrupt):
        run_benchmark("survive", survive.main, arguments)
    measured = run_benchmark("survive", survive.main, arguments)
    assert made.pop(3) == "study-kill-000", "the one that was under way"
    assert len(made) == len(set(made)) == 8
    assert json.loads((tmp_path / "s.json").read_text()) == measured
    assert measured["lost"] == ["study-kill-000"]
    tried = {(line["kind"], line["what"]): (line["tried"], line["survived"]) for line in measured["table"]}
    assert tried["training", "killed"] == (2, 2)
    assert tried["study", "killed"] == (1, 0)
    assert "| study | killed, 1 times in all | 1 | 0 | a step |" in (tmp_path / "out" / "table.md").read_text()
    assert not list((tmp_path / "out").glob("*.lock"))


def test_what_came_too_late_was_not_tried() -> None:
    outcomes = [Outcome("a", "index", "quota", met=False), Outcome("b", "index", "quota")]
    assert [(line["tried"], line["survived"]) for line in table(outcomes)] == [(1, 1)]
    assert as_markdown(table(outcomes)).splitlines()[2] == "| index | quota | 1 | 1 | nothing |"


def test_unknown_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--only nothing is nothing that is tried\n.*training.*full disk"):
        Campaign(tmp_path, only=["training", "nothing"])


def test_the_comparison_of_runs_notices(tiny_run: Path, tmp_path: Path) -> None:
    """Each thing that a run may lose, taken away in turn."""
    expected = RunDir.at(tiny_run)

    def of(harm: Callable[[RunDir], object]) -> list[str]:
        run = RunDir.at(tmp_path / "run")
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(tiny_run, run.path)
        harm(run)
        return [line.partition(":")[0] for line in run_differences(run, expected)]

    def change(path: Path, old: str, new: str) -> None:
        path.write_text(path.read_text().replace(old, new, 1))

    ledger = next(expected.ledger.iterdir()).name
    assert of(lambda run: None) == []
    assert of(lambda run: change(run.metrics, '"loss": ', '"loss": 1')) == ["metrics"]
    assert of(lambda run: run.metrics.write_text(run.metrics.read_text().partition("\n")[2])) == ["metrics"]
    assert of(lambda run: (run.ledger / ledger).write_bytes(b"")) == ["ledger"]
    assert of(lambda run: run.probes.unlink()) == ["probes"]
    assert of(lambda run: shutil.rmtree(run.checkpoint(12))) == ["checkpoints"]
    assert of(lambda run: (run.path / "x.part").touch()) == ["x.part is left"]


def test_the_comparison_of_files_notices(tmp_path: Path) -> None:
    for name, files in {
        "a": {"same": "1", "other": "2", "gone": "3"},
        "b": {"same": "1", "other": "4", "new": ""},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    found = file_differences(tmp_path / "b", tmp_path / "a")
    assert found == ["gone is missing", "new is one too many", "other differs"]
    assert file_differences(tmp_path / "b", tmp_path / "a", but=["gone", "new", "other"]) == []


def test_how_a_fault_is_to_be_told() -> None:
    disk, clock = FAULTS["full disk"], FAULTS["clock jumps"]
    assert ending_problems(disk, 2, "error: x: No space left on device\n  fix: make room") == []
    for status, said in (
        (1, "error: No space left on device"),
        (2, "error: No space left on device\nerror: again"),
        (2, "error: something"),
        (2, "Traceback\nerror: No space left on device"),
    ):
        assert len(ending_problems(disk, status, said)) == 1, said
    broken, shared = FAULTS["input/output error"], FAULTS["/dev/shm full"]
    assert ending_problems(broken, 2, "error: x: cannot be read\n  got: Input/output error: 'x'") == [], "is one error"
    assert ending_problems(shared, 2, "error: /dev/shm: No space left on device") == [], "workers have met it"
    assert ending_problems(shared, 0, "") == [], "nobody needs it"
    assert ending_problems(shared, 1, "error: No space left on device") != []
    assert ending_problems(clock, 0, "") == []
    assert len(ending_problems(clock, 1, "")) == 1


SLEEPER = Work("timeit", ("-n1", "-r1", "-s", "import subprocess, time", "subprocess.Popen(['sleep', '60']).wait()"))


def test_all_processes_of_a_job_are_found_and_ended(tmp_path: Path) -> None:
    mark = f"{tmp_path}/"
    job, other = (Job(SLEEPER, mark=f"{mark}{n}/", log=tmp_path / "log") for n in (1, 2))
    try:
        while len(living(job.mark)) < 2:
            time.sleep(0.01)
        assert job.first.pid in living(job.mark)
        assert not job.wait(0)
        job.send(Harm(signal.SIGKILL, "all"), random.Random(0))
        assert job.wait(10)
        assert job.status() == -signal.SIGKILL
        assert other.status() is None
    finally:
        end_marked(mark)
    assert other.wait(10)


def test_the_shim_fails_under_its_directory_alone_and_when_told(tmp_path: Path) -> None:
    if "quota" not in available():
        pytest.skip("needs a C compiler")
    place, log = tmp_path / "place", tmp_path / "log"
    beside, inside = tmp_path / "beside", place / "inside"
    write = f"[open(path, 'w').write('x') for path in ('{beside}', '{inside}')]"
    with set_up(FAULTS["quota"], place, tmp_path, random.Random(0)) as setting:
        statuses = []
        for harm in (
            lambda: None,
            lambda: bring_on(FAULTS["quota"], setting, None, random.Random(0)),
            lambda: mend(setting),
        ):  # type: ignore[arg-type]
            harm()
            beside.unlink(missing_ok=True)
            work = Work("timeit", ("-n1", "-r1", write))
            job = Job(work, mark=f"{tmp_path}/", log=log, environment=setting.environment)
            assert job.wait(20)
            assert beside.read_text() == "x"
            statuses.append(job.status())
    assert statuses == [0, 1, 0]
    assert "Disk quota exceeded" in log.read_text()


def test_a_disk_that_cannot_be_mounted_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be filled is the user's own."""
    monkeypatch.setattr(faults, "can_mount", lambda: True)
    monkeypatch.setattr(faults, "mount", lambda *_: False)
    monkeypatch.setattr(faults, "preloaded", lambda home: home / "fault.so")
    disk, place, draw = FAULTS["full disk"], tmp_path / "place", random.Random(0)
    with set_up(disk, place, tmp_path, draw) as setting:
        assert setting.environment["HEADWATER_FAULT_ERRNO"] == str(disk.number)
        bring_on(disk, setting, None, draw)  # type: ignore[arg-type]
        assert setting.trigger.exists()
        with pytest.raises(UserError, match="is no disk of its own"):
            fill(place / "filler")
    assert not list(place.iterdir())


def test_a_disk_that_a_killed_campaign_has_left_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_mount():
        pytest.skip("needs the right to mount a file system")
    whole = campaign(tmp_path)
    place = whole.trial.place("left")
    place.mkdir(parents=True)
    assert mount("-o", "size=64k", str(place))
    monkeypatch.setattr(whole, "unbroken", lambda _: None)
    monkeypatch.setattr(Trial, "kill", lambda self, name, activity, draw: Outcome(name, activity.name, "killed"))
    whole.make("left", "corpus", "")
    assert not place.exists()


def test_one_rank_alone_is_ended_for_want_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "CGROUPS", tmp_path / "none")
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]

    class Ranks:
        first = sleepers[0]

        def ranks(self) -> list[int]:
            return [each.pid for each in sleepers if each.poll() is None]

    try:
        use_up_memory(Ranks(), random.Random(0))  # type: ignore[arg-type]
        assert sorted(str(each.poll()) for each in sleepers) == ["-9", "None", "None"]
    finally:
        for each in sleepers:
            each.kill()
            each.wait()
