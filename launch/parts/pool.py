"""Runs parts in processes of their own, some at once, each on its share of the cores."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from headwater.configs.errors import UserError
from headwater.launch.jobs.command import module_command
from headwater.launch.jobs.processes import core_sets, sigterm_interrupts, start_child
from headwater.launch.parts.part import Part
from headwater.train.artifacts import read_json, remove, write_json
from headwater.train.progress import Pace, clock

P = TypeVar("P", bound=Part)

HEARTBEAT = 60.0
"""Seconds after which what is running is told, when no part has ended since."""

TAIL = 4096
"""Bytes of a log's end in which its last line is sought."""


def finish_parts(parts: Sequence[Part], parallel: int, say: Callable[[str], None]) -> None:
    """Runs the parts of a study that are not done yet.

    Raises:
        UserError: naming those that failed and the first one's log, when all others have ended.
        KeyboardInterrupt: as `run_parts`.
    """
    failed = run_parts(parts, parallel, say)
    if failed:
        names, first = "; ".join(part.name for part in failed), failed[0]
        raise UserError(f"{names} failed", got=why_failed(first), fix=f"see {first.log}; then start again")


def make_parts(parts: Sequence[Any], parallel: int, say: Callable[[str], None]) -> None:
    """Writes down what each part is that is not done yet (its `prepare`), then does as `finish_parts`."""
    for part in parts:
        if not part.is_done():
            part.prepare()
    finish_parts(parts, parallel, say)


def run_parts(parts: Sequence[P], parallel: int, say: Callable[[str], None], noun: str = "parts") -> list[P]:
    """Runs the parts that are not done yet, in their order but each after those that it needs; returns what failed.

    Args:
        parallel: how many run at once, each on its share of the cores.
        say: told what is done, finished and failed.
        noun: what `say` calls them.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM here, which is handed on to what is running; or a part ended well without
            being done, since it was asked to stop, and nothing more is begun.
    """
    done = {part.name for part in parts if part.is_done()}
    waiting = [part for part in parts if part.name not in done]
    for part in parts:
        if part.name in done:
            say(f"{part.name}: done before")
    say(f"{len(parts)} {noun}, {len(done)} finished before")
    places, ended = core_sets(parallel), SimpleQueue[tuple[P, str, int]]()
    running: dict[str, subprocess.Popen[bytes]] = {}
    logs = {part.name: part.log for part in parts}
    pace = Pace(len(parts), len(done))
    failed: set[str] = set()
    stopped = False
    with sigterm_interrupts():
        try:
            while True:
                ready = [part for part in waiting if done.issuperset(part.after)]
                for part in [] if stopped else ready[: len(places)]:
                    waiting.remove(part)
                    running[part.name] = begin(part, places.pop(0), ended)
                if not running:
                    break
                try:
                    part, cores, status = ended.get(timeout=HEARTBEAT)
                except Empty:
                    told = "; ".join(f"{name}: {last_line(logs[name])}" for name in running)
                    say(f"{pace.at(len(done))}; running {told}")
                    continue
                places.append(cores)
                del running[part.name]
                note_end(part, status)
                if status:
                    failed.add(part.name)
                    say(f"{part.name}: failed with status {status}, see {part.log}")
                elif part.is_done():
                    done.add(part.name)
                    left = pace.left(len(done))
                    more = f", about {clock(left)} left" if left else ""
                    say(f"{part.name}: finished ({len(done)} of {len(parts)}{more})")
                else:
                    stopped = True  # it was asked to stop, and has saved
        except KeyboardInterrupt:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
            raise
    if stopped:
        raise KeyboardInterrupt
    for part in waiting:
        say(f"{part.name}: not begun, since what it needs is not there")
    return [part for part in parts if part.name in failed]


def begin(part: P, cores: str, ended: SimpleQueue[tuple[P, str, int]]) -> subprocess.Popen[bytes]:
    """Starts a part's process; `ended` is told when and how it has ended."""
    part.path.mkdir(parents=True, exist_ok=True)
    process = start_child(module_command(part.module, [str(part.path), cores]), part.log)
    threading.Thread(target=lambda: ended.put((part, cores, process.wait())), daemon=True).start()
    return process


def last_line(log: Path) -> str:
    """What a part has printed last."""
    if not log.exists():
        return "begins"
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "begins")


def note_end(part: Part, status: int) -> None:
    """Keeps why a part failed beside it; a later success takes the note away."""
    path = part.path / "failed.json"
    if status == 0:
        remove(path)
        return
    lines = part.log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "rror" in line] or lines
    write_json(path, {"status": status, "error": errors[-1].strip() if errors else ""})


def why_failed(part: Part) -> str | None:
    """The last error of a part that failed; None of one that did not."""
    path = part.path / "failed.json"
    return read_json(path)["error"] if path.exists() else None
