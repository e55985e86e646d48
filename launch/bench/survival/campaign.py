"""The campaign: unbroken work first, then trial after trial; each outcome is kept, and a campaign that was itself
killed goes on after the last.

    OUT/unbroken/KIND.json       how long the unbroken work took      OUT/work/KIND-unbroken/    what it made
    OUT/trials/NAME.json         what became of a trial               OUT/logs/NAME.log          what it printed
    OUT/work/NAME/               a trial under way, or one that lost something
    OUT/table.md                 the table
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headwater.configs.errors import UserError
from headwater.launch.bench.survival.activities import ACTIVITIES, Activity
from headwater.launch.bench.survival.faults import FAULTS, available, unmount
from headwater.launch.bench.survival.processes import POLL_S, Job, end_marked, has_written
from headwater.launch.bench.survival.trials import WHOLE_S, Outcome, Trial, Unbroken
from headwater.train.artifacts import read_json, remove, write_json

FAULTY = ("training", "corpus", "index")
"""The work that faults are tried on: a study and a sweep are made of it."""

SEVERAL = ("training", "index")
"""The work that several processes share."""


class Campaign:
    """Trials in a directory.

    Args:
        out: the directory.
        seed: of every trial's draws, together with its name.
        only: kinds of work, and names of faults; all by default.
        say: told what is done.
        start: as of `Trial`.
    """

    def __init__(
        self,
        out: Path,
        *,
        seed: int = 0,
        only: Sequence[str] = (),
        say: Callable[[str], None] = print,
        start: Callable[..., Any] = Job,
    ) -> None:
        unknown = sorted(set(only) - {*ACTIVITIES, *FAULTS})
        if unknown:
            known = ", ".join([*ACTIVITIES, *FAULTS])
            raise UserError(f"--only {' '.join(unknown)} is nothing that is tried", expected=known)
        self.out, self.seed, self.say = out.absolute(), seed, say
        self.kinds = [name for name in ACTIVITIES if name in only] or list(ACTIVITIES)
        self.fault_names = [name for name in available() if name in only] or list(available())
        self.trial = Trial(self.out, f"{self.out}/", {}, start)

    def run(self, kills: int, faults: int) -> list[Outcome]:
        """Makes the trials that have not been made; returns the outcomes of all.

        Raises:
            UserError: the unbroken work fails.
        """
        names = [*self.kill_names(kills), *self.named_faults(faults)]
        found = []
        end_marked(self.trial.mark)  # what a campaign has left that was itself killed
        try:
            for number, (name, kind, fault) in enumerate(names, 1):
                kept = self.out / "trials" / f"{name}.json"
                if not kept.exists():
                    outcome = self.make(name, kind, fault)
                    write_json(kept, outcome.as_json())
                    self.say(f"{number} of {len(names)}: {line_of(outcome)}")
                found.append(Outcome(**read_json(kept)))
        finally:
            end_marked(self.trial.mark)
        return found

    def kill_names(self, kills: int) -> list[tuple[str, str, str]]:
        """Kinds take turns."""
        kinds = [self.kinds[number % len(self.kinds)] for number in range(kills)]
        return [(f"{kind}-kill-{number // len(self.kinds):03d}", kind, "") for number, kind in enumerate(kinds)]

    def named_faults(self, faults: int) -> list[tuple[str, str, str]]:
        """Faults take turns, and with each turn the work that they are tried on."""
        found = []
        for number in range(faults):
            turn, place = divmod(number, len(self.fault_names))
            fault = self.fault_names[place]
            can = [kind for kind in (SEVERAL if FAULTS[fault].several else FAULTY) if kind in self.kinds] or [FAULTY[0]]
            word = fault.strip("/").replace("/", "-").replace(" ", "-")
            kind = can[number % len(can)]
            found.append((f"{kind}-{word}-{turn:03d}", kind, fault))
        return found

    def make(self, name: str, kind: str, fault: str) -> Outcome:
        """One trial; its directory is removed unless something was lost."""
        activity, draw = ACTIVITIES[kind], random.Random(f"{self.seed}/{name}")
        self.unbroken(activity)
        unmount(self.trial.place(name))
        remove(self.trial.place(name))
        remove(self.trial.log(name))
        if fault:
            outcome = self.trial.fault(name, activity, FAULTS[fault], draw)
        else:
            outcome = self.trial.kill(name, activity, draw)
        if not outcome.lost:
            remove(self.trial.place(name))
        return outcome

    def unbroken(self, activity: Activity) -> Unbroken:
        """The work that nothing breaks off, made once; with what it needs."""
        if activity.name in self.trial.whole:
            return self.trial.whole[activity.name]
        if activity.needs:
            self.unbroken(ACTIVITIES[activity.needs])
        name, kept = f"{activity.name}-unbroken", self.out / "unbroken" / f"{activity.name}.json"
        place = self.trial.place(name)
        if not kept.exists():
            self.say(f"{activity.name}: unbroken first")
            remove(place)
            self.trial.begin(activity, place)
            write_json(kept, self.timed(activity, name))
        self.trial.whole[activity.name] = Unbroken(place, **read_json(kept))
        return self.trial.whole[activity.name]

    def timed(self, activity: Activity, name: str) -> dict[str, float]:
        """Does the unbroken work; returns the seconds until it wrote anything and until it was done."""
        place, began, clock, first = self.trial.place(name), time.monotonic(), time.time(), 0.0
        job = self.trial.job(name, self.trial.work(activity, place, activity.layouts[0]))
        while job.status() is None and time.monotonic() - began < WHOLE_S:
            if not first and has_written(place, clock):
                first = time.monotonic() - began
            time.sleep(POLL_S)
        if not job.wait(1) or job.status():
            job.end()
            got = f"status {job.status()}: {self.trial.said(name)[-2000:]}"
            raise UserError(f"{activity.name} fails with nothing done to it", got=got)
        return {"first_s": round(first, 2), "whole_s": round(time.monotonic() - began, 2)}


def line_of(outcome: Outcome) -> str:
    """An outcome in a line, or some if something was lost."""
    how = "LOST" if outcome.lost else "survived" if outcome.met else "was done before"
    told = "".join(f"\n    {each}" for each in outcome.lost)
    return f"{outcome.name}: {how} ({'; '.join(outcome.events)}){told}"


def table(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A line for each kind of work that was killed, then one for each fault: how many were tried, how many survived,
    and what the others lost. What had ended before it was harmed was not tried."""
    lines: dict[tuple[str, str], list[Outcome]] = {}
    for each in sorted(outcomes, key=lambda each: each.what != "killed"):
        key = (each.kind, "killed") if each.what == "killed" else (", ".join(FAULTY), each.what)
        lines.setdefault(key, []).append(each)
    made = []
    for (kind, what), group in lines.items():
        tried = [each for each in group if each.met or each.lost]
        kinds = sorted({each.kind for each in group}) if what != "killed" else [kind]
        made.append(
            {
                "kind": ", ".join(kinds),
                "what": what,
                "kills": sum(each.kills for each in tried),
                "tried": len(tried),
                "survived": sum(not each.lost for each in tried),
                "lost": "; ".join(line.split("\n")[0] for each in tried for line in each.lost) or "nothing",
                "longest_end_s": max((each.end_s for each in tried), default=0.0),
            }
        )
    return made


def as_markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The table for the documentation."""
    text = ["| what | done to it | tried | survived | lost |", "|---|---|---|---|---|"]
    for line in lines:
        what = f"killed, {line['kills']} times in all" if line["what"] == "killed" else line["what"]
        text.append(f"| {line['kind']} | {what} | {line['tried']} | {line['survived']} | {line['lost']} |")
    return "\n".join(text) + "\n"
