"""One trial: a piece of work is broken off at a random moment, gone on with, and compared with the unbroken one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headwater.launch.bench.survival.activities import Activity, Layout
from headwater.launch.bench.survival.faults import Fault, Setting, bring_on, mend, set_up
from headwater.launch.bench.survival.processes import HARMS, POLL_S, Job, Work, has_written
from headwater.train.artifacts import remove

WHOLE_S = 600.0
"""Any piece of work here is done by then, on a busy machine too."""
GONE_S = 120.0
"""A process that was told to stop, or whose disk has failed, is gone by then."""
AGAIN = 0.25
"""How often a restart is killed as well."""
EARLY = 0.25
"""How often the moment is before anything is written."""
REACHES = (0.9, 0.4, 0.15)
"""How late a kill may come; on a machine that has become quicker, or a place that was begun before, sooner."""
TAIL = 1200
"""Characters of a log that a loss is told with."""


@dataclass(frozen=True)
class Unbroken:
    """The work that nothing has broken off: where it is, and the seconds until it wrote anything and in all."""

    place: Path
    first_s: float
    whole_s: float


@dataclass
class Outcome:
    """What became of a trial.

    Attributes:
        kind: of work.
        what: was done to it: `killed`, or a fault's name.
        kills: how many that found it at work.
        met: whether anything that was done to it found it at work.
        events: in order, for people.
        lost: a line for everything that is not as it should be; none if it survived.
        end_s: the longest that it took to end.
    """

    name: str
    kind: str
    what: str
    kills: int = 0
    met: bool = True
    events: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    end_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """What all trials of a campaign have.

    Attributes:
        home: the campaign's directory.
        mark: what the marks of its processes begin with.
        whole: the unbroken work of every kind that is needed, by name.
        start: makes a job of a piece of work; as `Job`.
    """

    home: Path
    mark: str
    whole: dict[str, Unbroken]
    start: Callable[..., Any] = Job

    def place(self, name: str) -> Path:
        return self.home / "work" / name

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def work(self, activity: Activity, place: Path, layout: Layout) -> Work:
        needed = self.whole[activity.needs].place if activity.needs else Path()
        return activity.work(place, needed, layout)

    def begin(self, activity: Activity, place: Path) -> None:
        activity.begin(place, self.whole[activity.needs].place if activity.needs else Path())

    def job(self, name: str, work: Work, setting: Setting | None = None) -> Any:
        environment = setting.environment if setting is not None else {}
        prefix = setting.prefix if setting is not None else ()
        return self.start(work, mark=f"{self.mark}{name}/", log=self.log(name), environment=environment, prefix=prefix)

    def kill(self, name: str, activity: Activity, draw: random.Random) -> Outcome:
        """A kill, or some in a row, each start in a layout of its own."""
        outcome, place = Outcome(name, activity.name, "killed", met=False), self.place(name)
        used: list[Layout] = []
        for reach in REACHES:
            remove(place)
            self.begin(activity, place)
            used = [self.kill_once(activity, place, outcome, draw, reach)]
            if outcome.met:
                break
        while outcome.met and draw.random() < AGAIN:
            used.append(self.kill_once(activity, place, outcome, draw, REACHES[-1]))
        self.finish(activity, place, outcome, draw, all(layout.same for layout in used))
        return outcome

    def kill_once(self, activity: Activity, place: Path, outcome: Outcome, draw: random.Random, reach: float) -> Layout:
        """Starts the work in a random layout and does random harm to it at a random moment; returns the layout."""
        layout, harm = draw.choice(activity.layouts), draw.choice(HARMS)
        job = self.job(outcome.name, self.work(activity, place, layout))
        after = self.await_moment(activity, place, job, draw, reach)
        met = job.status() is None
        job.send(harm, draw)
        self.await_end(job, outcome, WHOLE_S if harm.whom == "one" else GONE_S)
        outcome.kills += met
        outcome.met |= met
        outcome.events.append(f"{layout}: {harm} after {after:.1f} s{'' if met else ', when it had ended'}")
        return layout

    def fault(self, name: str, activity: Activity, fault: Fault, draw: random.Random) -> Outcome:
        """A fault, from a random moment on; then it is mended, and the work goes on."""
        outcome, place = Outcome(name, activity.name, fault.name), self.place(name)
        layouts = [each for each in activity.layouts if each.ranks > 1] if fault.several else activity.layouts
        layout = draw.choice(layouts)
        with set_up(fault, place, self.home, draw) as setting:
            self.begin(activity, place)
            job = self.job(name, self.work(activity, place, layout), setting)
            after = self.await_moment(activity, place, job, draw, REACHES[0])
            outcome.met = job.status() is None
            bring_on(fault, setting, job, draw)
            outcome.events.append(f"{layout}: {fault.name} after {after:.1f} s")
            self.await_end(job, outcome, GONE_S if fault.ends else WHOLE_S)
            status = job.status()
            outcome.events.append(f"ended with status {status} in {outcome.end_s:.1f} s")
            outcome.lost += ending_problems(fault, status, self.said(name))
            outcome.met &= bool(status) or not fault.ends
            mend(setting)
            self.finish(activity, place, outcome, draw, layout.same)
        return outcome

    def await_moment(self, activity: Activity, place: Path, job: Any, draw: random.Random, reach: float) -> float:
        """Waits for a random moment of a job's life, or its end; returns the seconds since its start.

        Args:
            reach: the latest moment, as a share of what the unbroken work took after it had written anything.
        """
        unbroken, began, clock = self.whole[activity.name], time.monotonic(), time.time()
        if draw.random() < EARLY:
            limit = draw.uniform(0, unbroken.first_s)
        else:
            while job.status() is None and not has_written(place, clock) and time.monotonic() - began < WHOLE_S:
                time.sleep(POLL_S)
            limit = time.monotonic() - began + draw.uniform(0, reach * (unbroken.whole_s - unbroken.first_s))
        while job.status() is None and time.monotonic() - began < limit:
            time.sleep(POLL_S)
        return time.monotonic() - began

    def await_end(self, job: Any, outcome: Outcome, seconds: float) -> None:
        """Waits until every process is gone; those that are not are ended, and noted."""
        began = time.monotonic()
        if not job.wait(seconds):
            outcome.lost.append(f"processes were there {seconds:.0f} s later")
            job.end()
        outcome.end_s = max(outcome.end_s, round(time.monotonic() - began, 1))

    def finish(self, activity: Activity, place: Path, outcome: Outcome, draw: random.Random, same: bool) -> None:
        """Starts it once more, to its end, and compares."""
        layout = draw.choice(activity.layouts)
        began, name = len(self.said(outcome.name)), outcome.name
        job = self.job(name, self.work(activity, place, layout))
        if not job.wait(WHOLE_S):
            outcome.lost.append(f"not done {WHOLE_S:.0f} s after the restart")
            job.end()
            return
        outcome.events.append(f"{layout}: finished")
        if job.status():
            outcome.lost.append(f"the restart ended with status {job.status()}: {self.said(name)[began:][-TAIL:]}")
            return
        outcome.lost += activity.differences(place, self.whole[activity.name].place, same and layout.same)

    def said(self, name: str) -> str:
        return self.log(name).read_text(errors="replace") if self.log(name).exists() else ""


def ending_problems(fault: Fault, status: int | None, said: str) -> list[str]:
    """What is wrong with how a job ended that met a fault, and with what it said of it."""
    if not status:
        return []  # it was done before the fault came, or a fault that nobody has to notice
    if not fault.number:
        return [] if fault.ends else [f"ended with status {status}, though the fault was none of its: {said[-TAIL:]}"]
    found = []
    if status != 2:
        found.append(f"ended with status {status}, not 2: {said[-TAIL:]}")
    # The system's own words for one of them are "Input/output error".
    errors = said.replace(fault.said, "").count("error: ")
    if errors != 1:
        found.append(f"said {errors} errors: {said[-TAIL:]}")
    if fault.said not in said:
        found.append(f"did not say {fault.said!r}: {said[-TAIL:]}")
    if "Traceback" in said:
        found.append(f"left a traceback: {said[-TAIL:]}")
    return found
