"""The one builder of torchrun commands, and the one way to run a stage in processes of its own.

torchrun("headwater.train", ["pretrain/tiny", "out=runs/a"], processes=2)
run_module("headwater.train", ["pretrain/tiny", "out=runs/a"], processes=2)
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from headwater.configs.errors import UserError
from headwater.launch.jobs.processes import run_child

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
"""Exit statuses of a command that was told to stop."""


class ShellText(str):
    """Words of a script that its shell expands: they stand in it as they are."""

    __slots__ = ()


def torchrun(
    module: str,
    arguments: Sequence[str],
    *,
    processes: int,
    nodes: int = 1,
    meeting: Sequence[str] = (),
    options: Sequence[Sequence[str]] = (),
    python: str = sys.executable,
) -> list[list[str]]:
    """A torchrun command as groups of words, each a line of a script; `words` makes it a command.

    Args:
        module: what each process runs, with `arguments`.
        processes: on each machine.
        nodes: machines.
        meeting: options that say where several machines meet. One machine takes a free port, so that its jobs do not
            collide.
        options: further ones, a group each.
        python: that of the machines.
    """
    size = ["--nnodes", str(nodes)] if nodes > 1 else ["--standalone"]
    return [
        [python, "-m", "headwater.launch.jobs.agent"],
        [*size, "--nproc-per-node", str(processes)],
        *([list(meeting)] if nodes > 1 else []),
        *(list(group) for group in options),
        ["-m", module, *arguments],
    ]


def words(groups: Sequence[Sequence[str]]) -> list[str]:
    """The groups as one command."""
    return [word for group in groups for word in group]


def script(groups: Sequence[Sequence[str]]) -> str:
    """The groups as the lines of one shell command, quoted but for `ShellText`."""
    return " \\\n    ".join(
        " ".join(word if isinstance(word, ShellText) else shlex.quote(word) for word in group) for group in groups
    )


def module_command(module: str, arguments: Sequence[str], *, processes: int = 1) -> list[str]:
    """Runs a module on this machine: by itself in one process, through torchrun in several."""
    if processes > 1:
        return words(torchrun(module, arguments, processes=processes))
    return [sys.executable, "-m", module, *arguments]


def run_module(module: str, arguments: Sequence[str], *, processes: int = 1, what: str | None = None) -> None:
    """Runs a module on this machine to its end.

    Args:
        what: it does, for the message; the module's name if None.

    Raises:
        UserError: it failed.
        KeyboardInterrupt: it was told to stop.
    """
    status = run_child(module_command(module, arguments, processes=processes))
    if status in STOPPED:
        raise KeyboardInterrupt
    if status:
        raise UserError(f"{what or module} ended early", got=f"exit status {status}", fix="see what it printed above")
