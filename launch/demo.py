"""The main job, end to end: from documents to the passages that taught a fact, in one run directory.

    headwater demo                                   # runs/demo, minutes on two CPU cores
    headwater demo out=runs/other seed=1             # other people, another model
    headwater demo demo/wordnet                      # another text, and real facts: runs/wordnet

Every stage leaves what it made in the run directory and a line in timings.json; started again, finished stages are
not run again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headwater.attribution.report.settings import ReportSettings
from headwater.attribution.settings import (
    TRACKSTAR,
    EvaluateSettings,
    IndexSettings,
    TracedModelSettings,
    TraceSettings,
)
from headwater.configs import load_config, section, setting
from headwater.launch.jobs.command import run_module
from headwater.launch.parts.settings import keep_settings
from headwater.launch.parts.training import is_trained
from headwater.train.artifacts import RunDir, fingerprint, read_json, write_json


@dataclass(kw_only=True, slots=True)
class DemoSettings:
    """The demo: a pretraining preset, the indexes made from its last checkpoint, and how they are held against gold."""

    out: str = setting("runs/demo", "The run directory.")
    seed: int = setting(0, "Seed of everything: weights, order, people, schedule, projection, bootstrap.", minimum=0)
    preset: str = setting("pretrain/demo", "The pretraining configuration.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    ranks: int = setting(1, "Processes that pretrain, through torchrun.", minimum=1)
    index: IndexSettings = section(IndexSettings, model=TracedModelSettings(run="-"))
    trackstar: IndexSettings = section(
        IndexSettings, "The paper's recipe, beside it.", model=TracedModelSettings(run="-"), **TRACKSTAR
    )
    trace: TraceSettings = section(TraceSettings, index="-")
    evaluate: EvaluateSettings = section(EvaluateSettings)
    report: ReportSettings = section(ReportSettings)


STAGES = ("corpus", "pretrain", "index", "trace", "evaluate", "report")


class Demo:
    """One demo run."""

    def __init__(self, settings: DemoSettings, say: Callable[[str], None] = print) -> None:
        from headwater.train.settings import PretrainSettings

        self.settings, self.say = settings, say
        self.run_dir = RunDir.at(settings.out)
        self.overrides = [
            *settings.pretrain,
            f"out={settings.out}",
            f"seed={settings.seed}",
            f"corpus.seed={settings.seed}",
        ]
        self.pretrain_settings = load_config(PretrainSettings, settings.preset, self.overrides)
        self.timings_path = self.run_dir.path / "timings.json"

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet; returns the summary."""
        self._check_same()
        for stage in STAGES:
            done = self._timings()
            if stage in done and stage != "report":
                self.say(f"{stage}: done before, in {done[stage]:.0f} s")
                continue
            self.say(f"{stage} ...")
            began = time.perf_counter()
            getattr(self, f"_{stage}")()
            self._note(stage, time.perf_counter() - began)
        # Once more, so that the page counts the time of its own making.
        self._report()
        return read_json(self.run_dir.report / "summary.json")

    def _timings(self) -> dict[str, float]:
        return read_json(self.timings_path) if self.timings_path.exists() else {}

    def _note(self, stage: str, seconds: float) -> None:
        """Adds to what an interrupted attempt has spent on the stage."""
        write_json(self.timings_path, {**self._timings(), stage: round(seconds, 2)})
        self.say(f"{stage}: {seconds:.0f} s")

    def _check_same(self) -> None:
        """Refuses to go on with a run that was started with other settings."""
        given = {"pretraining": asdict(self.pretrain_settings), **asdict(self.settings)}
        keep_settings(
            self.run_dir.path / "demo.json",
            given,
            home=self.run_dir.path,
            mark=fingerprint([asdict(self.pretrain_settings), asdict(self.settings)]),
            what=f"{self.run_dir.path} was started with other settings",
            fix="choose another out=, or remove that directory",
        )

    def _corpus(self) -> None:
        from headwater.train.corpus.build import build_corpus

        build_corpus(self.pretrain_settings)

    def _pretrain(self) -> None:
        given = [self.settings.preset, *self.overrides]
        run_module("headwater.train", given, processes=self.settings.ranks, what="pretraining")
        if not is_trained(self.run_dir.path, self.pretrain_settings):
            raise KeyboardInterrupt  # asked to stop, and saved

    def _indexes(self) -> Iterator[IndexSettings]:
        """Our own, the paper's, and the gradients as they are, of the same loss and dimensions as the paper's."""
        for name, settings in (("headwater", self.settings.index), ("trackstar", self.settings.trackstar)):
            model = replace(settings.model, run=self.settings.out, path="")
            projection = replace(settings.projection, seed=self.settings.seed)
            made = replace(settings, name=name, model=model, out="", projection=projection)
            yield made
        yield replace(made, name="gradient", correction="none", curvature=replace(made.curvature, kind="none"))

    def _index(self) -> None:
        from headwater.attribution.index.build import build_index

        for settings in self._indexes():
            began = time.perf_counter()
            build_index(settings)
            self.say(f"  {settings.name}: {time.perf_counter() - began:.0f} s")

    def _trace(self) -> None:
        from headwater.attribution.tracing.run import run_trace

        run_trace(
            replace(
                self.settings.trace,
                index=str(self.run_dir.index("headwater")),
                queries=str(self.run_dir.facts / "probes.jsonl"),
                out=str(self.run_dir.trace("headwater")),
            )
        )

    def _evaluate(self) -> None:
        from headwater.attribution.evaluation.evaluate import evaluate

        evaluate(replace(self.settings.evaluate, run=self.settings.out, seed=self.settings.seed))

    def _report(self) -> None:
        from headwater.attribution.report.build import build_report

        build_report(replace(self.settings.report, run=self.settings.out))


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Runs the demo and prints its table; returns the summary."""
    from rich.console import Console

    from headwater.attribution.evaluation.table import console_tables

    console = Console()
    demo = Demo(settings, say=lambda text: console.print(text, style="dim", highlight=False))
    summary = demo.run()
    table = read_json(demo.run_dir.evaluation / "table.json")
    for each in console_tables(table, console.width):
        console.print(each)
    console.print(f"report: {demo.run_dir.report / 'index.html'}")
    console.print(f"explore it, and ask the model: {explore_command(settings.out)}", soft_wrap=True, highlight=False)
    return summary


def explore_command(run: str) -> str:
    """What opens the explorer on a run: the command that stands beside this Python, which may not be on the PATH."""
    installed = Path(sys.executable).with_name("headwater")
    found = shutil.which("headwater")
    same = found is not None and installed.exists() and os.path.samefile(found, installed)
    beside = os.path.relpath(installed) if installed.exists() and not same else "headwater"
    return f"{beside} explore {shlex.quote(run)}"
