"""How a process of a job ends: what it says, with which status; and how the job has ended, in one line, for the script
that started it, since an exit status alone does not say it.

A process that was asked to stop and saved ends well, as one that is finished does; its torchrun ends with the status of
the signal; `srun` makes one number of many. The script names a file in `HEADWATER_ENDED` and reads what stands there:
`finished ...`, `stopped ...` or `refused`. Where nothing stands there, the job was broken off.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from headwater.configs.errors import UserError, refusals

T = TypeVar("T")

ENDED = "HEADWATER_ENDED"
"""The variable that names the file."""

FINISHED, STOPPED, REFUSED = "finished", "stopped", "refused"
"""The first word: done; asked to stop, and saved; an error that a person must mend, as the same would happen again."""

OK, PEER_GONE, USER_ERROR = 0, 1, 2

PEER_S = 2.0
"""How long a process waits for the one that knows the cause to end first: torchrun goes by that one's status."""

_path: str | None = None


def report_ending() -> None:
    """This process is what the script has started: `note_ending` is for it to say. A training within something larger
    says nothing, since its end is not the end of the job."""
    global _path
    _path = os.environ.get(ENDED)


def note_ending(line: str) -> None:
    """Writes the line, if this process reports to somebody; a disk that is full keeps nobody from ending."""
    if _path:
        with contextlib.suppress(OSError), open(_path, "w", encoding="utf-8") as file:
            file.write(f"{line}\n")


def note_ending_unless_noted(line: str) -> bool:
    """As `note_ending`, where nobody has said more; whether this process reports to somebody."""
    if _path and not os.path.exists(_path):
        note_ending(line)
    return bool(_path)


def answered(read: Callable[[], T], work: Callable[[T], int | None]) -> int:
    """What a process of a job is for; returns its exit status: what the work returns, 2 after saying what is wrong
    (unless another process of the job does), 1 where another process has gone, which says why.

    Args:
        read: its settings: what is wrong with them the processes of a machine find alike, and the first says.
    """
    try:
        with refusals():
            given = read()
    except UserError as error:
        return failed(error, said=os.environ.get("LOCAL_RANK", "0") != "0")
    try:
        with refusals():
            return work(given) or OK
    except UserError as error:
        return failed(error, said=getattr(error, "is_said", False))
    except RuntimeError as error:
        if not is_peer_gone(error):
            raise
        time.sleep(PEER_S)
        rank = os.environ.get("RANK")
        print(f"rank {rank}: ended, since another process has gone; it says why", file=sys.stderr, flush=True)
        return PEER_GONE


def is_peer_gone(error: RuntimeError) -> bool:
    """Whether what failed is the connection with a process that has ended: gloo's words, and NCCL's."""
    return any(text in str(error) for text in ("closed by peer", "reset by peer", "remote process exited"))


def failed(error: UserError, *, said: bool) -> int:
    """Says what is wrong, unless another process of the job does; returns the exit status."""
    note_ending(REFUSED)
    if not said:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return USER_ERROR
