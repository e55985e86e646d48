"""The errors a user is meant to read: what is wrong, what was found, what was expected, and how to mend it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class UserError(ValueError):
    """Something the user can mend. The command line prints it without a traceback and exits with status 2.

    Args:
        what: the thing that is wrong (a file, a key, an argument).
        got: what was found.
        expected: what would have been right.
        fix: one sentence that says what to do.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        lines = [what]
        if got is not None:
            lines.append(f"  got:      {got}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  fix:      {fix}")
        super().__init__("\n".join(lines))


class MissingError(UserError):
    """A file or directory that a stage needs and an earlier stage has not made."""


class CorruptError(UserError):
    """A stored artifact whose bytes are not the ones that were written."""


class MismatchError(UserError):
    """Two artifacts that do not belong together: their fingerprints differ."""


class RefusedError(UserError):
    """Something that the operating system refused: the disk is full, a path leads nowhere, files may not be written."""


_FIXES = {
    errno.ENOSPC: "make room, then give the same command again: what is finished is kept",
    errno.EDQUOT: "make room within the quota, then give the same command again: what is finished is kept",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then give the same command again",
    errno.EMFILE: "raise the limit on open files (ulimit -n 4096), then give the same command again",
    errno.ENFILE: "close other programs, then give the same command again",
    errno.EROFS: "choose a place that is not mounted read-only",
    errno.EACCES: "mend its rights, or choose another place",
    errno.EPERM: "mend its rights, or choose another place",
    errno.EIO: "look at the disk (dmesg); what is finished is kept",
    errno.ECHILD: "give the same command again, with fewer processes if memory was short; what is finished is kept",
    errno.ESTALE: "mount the share again; what is finished is kept",
}


def mending(error: OSError, otherwise: str) -> str:
    """What to do about something that the system has said."""
    return _FIXES.get(error.errno or 0, otherwise)


def as_refused(error: OSError) -> RefusedError:
    """What the system has said, as an error for the user."""
    places = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    said = error.strerror or str(error) or type(error).__name__
    fix = _FIXES.get(error.errno or 0, "check the path")
    return RefusedError(f"{' to '.join(places)}: {said}" if places else said, fix=fix)


@contextmanager
def refusals() -> Iterator[None]:
    """Raises what the operating system refuses as a `UserError`; a reader that has gone (`| head`) is let through."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise as_refused(error) from error


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration."""

    key: str
    value: object
    expected: str
    fix: str | None = None

    def __str__(self) -> str:
        text = f"{self.key} = {self.value!r}: expected {self.expected}"
        return f"{text}; {self.fix}" if self.fix else text


class ConfigError(UserError):
    """All problems of a configuration, reported together."""

    def __init__(self, problems: Sequence[Problem], source: str = "the configuration") -> None:
        self.problems = list(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{source} has {len(self.problems)} {noun}:{lines}")
