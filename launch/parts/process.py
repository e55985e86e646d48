"""What the process of a part does before and after its work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headwater.configs.errors import UserError, refusals
from headwater.launch.jobs.processes import keep_to_cores
from headwater.train.artifacts import read_json
from headwater.train.ending import FINISHED, note_ending_unless_noted, report_ending
from headwater.train.lifetime import die_with_parent

USER_ERROR, INTERRUPTED = 2, 130


def run_part(arguments: Sequence[str], work: Callable[[Path, dict[str, Any]], int], note: str = "part.json") -> int:
    """Does a part's work on its cores while nobody else does; returns the exit status.

    The lock keeps a study that was killed and started again from running a part beside the process that was left over
    from before.

    Args:
        arguments: PATH [CORES], as the pool gives them.
        work: is given the directory and the note that lies in it; returns the exit status, 0 also where it was asked to
            stop and has saved.
        note: the file that says what the part is.
    """
    from headwater.train.locks import file_lock

    die_with_parent()
    report_ending()
    path = Path(arguments[0])
    keep_to_cores(arguments[1] if len(arguments) > 1 else "")
    try:
        with refusals(), file_lock(path / "running"):
            status = work(path, read_json(path / note))
            if status == 0:
                note_ending_unless_noted(FINISHED)
            return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
