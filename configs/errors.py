"""The errors a user is meant to read: what is wrong, what was found, what was expected, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
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
