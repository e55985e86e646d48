"""How a job has ended, in one line, for the script that started it: an exit status alone does not say it.

A process that was asked to stop and saved ends well, as one that is finished does; its torchrun ends with the status of
the signal; `srun` makes one number of many. The script names a file in `HEADWATER_ENDED` and reads what stands there:
`finished ...`, `stopped ...` or `refused`. Where nothing stands there, the job was broken off.
"""

from __future__ import annotations

import contextlib
import os

ENDED = "HEADWATER_ENDED"
"""The variable that names the file."""

FINISHED, STOPPED, REFUSED = "finished", "stopped", "refused"
"""The first word: done; asked to stop, and saved; an error that a person must mend, as the same would happen again."""


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
