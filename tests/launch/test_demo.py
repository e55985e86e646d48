"""The main job on a tiny model: what it leaves, and that a killed one goes on to the same summary."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from ..jobs import Job, call, wait_for
from .demo_process import demo

OVERRIDES = (
    "preset=pretrain/tiny",
    "pretrain=[train.steps=16,callbacks.probes.every=8]",
    "index.projection.dims=6",
    "trackstar.projection.dims=6",
    "evaluate.tail_patch.queries=2",
)


def arguments_of(out: Path) -> list[str]:
    return ["demo", f"out={out}", *OVERRIDES]


def run(out: Path, here: Path) -> str:
    """A demo in a process that has imported everything; what it printed."""
    status = call(demo, arguments_of(out), str(here), ranks=1, log=here / "log")
    assert status == 0, (here / "log").read_text()[-3000:] + (here / "err").read_text()[-3000:]
    return (here / "out").read_text()


def summary_of(run: Path) -> dict[str, Any]:
    """The figures without those that a clock made."""
    summary = json.loads((run / "report/summary.json").read_text())
    summary.pop("wall_s")
    for part, key in (("train", "tokens_per_s"), ("train", "wall_s"), ("index", "wall_s")):
        summary[part].pop(key)
    return summary


def test_without_a_configuration_it_takes_its_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.configs import load_config
    from headwater.launch import demo
    from headwater.launch.cli import commands as cli

    got: list[demo.DemoSettings] = []
    monkeypatch.setattr(demo, "run_demo", got.append)
    cli.app(["demo", "seed=3"], standalone_mode=False)
    assert got == [load_config(demo.DemoSettings, "demo", ["seed=3"])]
    assert got != [load_config(demo.DemoSettings, None, ["seed=3"])]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    here = tmp_path_factory.mktemp("demo")
    return here / "run", run(here / "run", here)


@pytest.mark.slow
def test_summary_has_every_figure(finished: tuple[Path, str]) -> None:
    out, printed = finished
    summary = summary_of(out)
    assert summary["corpus"]["passages"] == summary["index"]["passages"] > 400
    assert summary["facts"]["people"] >= 10
    assert summary["train"]["steps"] == 16
    methods = summary["methods"]
    gradient = ("headwater", "trackstar", "gradient_cosine", "gradient_dot")
    for name in (*gradient, "bm25", "random"):
        for metric in ("mrr", "recall@10", "hit@10", "precision@10", "tail_patch"):
            mean, low, high = methods[name][metric]
            assert low <= mean <= high
    assert all(label in printed for label in ("BM25", "Random", "report:", "headwater explore"))
    assert len(methods["gold"]["tail_patch"]) == 3
    assert methods["bm25"]["mrr"][0] > 0.9 > methods["random"]["mrr"][0]
    assert "<html" in (out / "report/index.html").read_text()


@pytest.mark.slow
def test_killed_demo_goes_on_to_the_same_summary(finished: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = finished
    out = tmp_path / "run"
    job = Job(demo, arguments_of(out), str(tmp_path), log=tmp_path / "log")
    marks = out / "timings.json"

    def indexing() -> bool:
        assert job.running, (tmp_path / "log").read_text()
        return marks.exists() and "pretrain" in marks.read_text() and (out / "index").is_dir()

    wait_for(indexing)
    job.signal(signal.SIGKILL)
    job.wait()
    assert [process.exitcode for process in job.processes] == [-signal.SIGKILL]
    assert "index" not in json.loads(marks.read_text())
    printed = run(out, tmp_path)
    assert "pretrain: done before" in printed
    assert summary_of(out) == summary_of(whole)


def test_another_setting_in_the_same_run_is_refused(tmp_path: Path) -> None:
    from headwater.configs import load_config
    from headwater.configs.errors import MismatchError
    from headwater.launch.demo import Demo, DemoSettings

    settings = load_config(DemoSettings, "demo", [*OVERRIDES, f"out={tmp_path / 'run'}"])
    Demo(settings)._check_same()
    Demo(settings)._check_same()
    settings.seed = 1
    with pytest.raises(MismatchError, match="other settings"):
        Demo(settings)._check_same()
