"""Passages, or single visits of them, that the stream leaves out.

Nothing takes their place, and every other passage is met at the same step, in the same sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from headwater.configs.errors import UserError


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Visits that are left out.

    Attributes:
        passage: an id, or its number in the run.
        first, last: the steps, both left out, counted from 1 as in the ledger; None: every visit.
    """

    passage: str
    first: int | None = None
    last: int | None = None


def read_exclusions(path: str) -> list[Exclusion]:
    """What a file leaves out, a line each: a passage's id, or `id<TAB>first<TAB>last`; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or naming the line that says neither.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the list of excluded passages {path} cannot be read",
            got=error,
            expected="passage ids in UTF-8, one a line",
            fix="correct train.exclude",
        ) from None
    return [_exclusion(path, number, line) for number, line in enumerate(lines, start=1) if line]


def _exclusion(path: str, number: int, line: str) -> Exclusion:
    passage, *steps = line.split("\t")
    if not steps:
        return Exclusion(passage)
    first, last = (int(step) if step.isdecimal() else 0 for step in steps) if len(steps) == 2 else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"{path}, line {number} does not say what is left out",
            got=line,
            expected="a passage's id, or id<TAB>first<TAB>last with steps 1 <= first <= last as the ledger counts them",
            fix="correct train.exclude",
        )
    return Exclusion(passage, first, last)


class LeftOut:
    """The visits that a stream leaves out.

    Args:
        whole: numbers of passages that are never seen.
        windows: int64 [n, 3], passage, first and last step (from 1) of visits that are left out.
    """

    def __init__(self, whole: Collection[int] = (), windows: np.ndarray | None = None) -> None:
        self.whole = frozenset(int(number) for number in whole)
        rows_n3 = np.zeros((0, 3), dtype=np.int64) if windows is None else np.asarray(windows, dtype=np.int64)
        self.windows = np.unique(rows_n3, axis=0)

    @classmethod
    def of(cls, exclusions: Sequence[Exclusion], numbers: np.ndarray) -> LeftOut:
        """Of a file's lines, with the number of each passage."""
        pairs = list(zip(exclusions, numbers.tolist(), strict=True))
        windows = [(number, each.first, each.last) for each, number in pairs if each.first is not None]
        rows_n3 = np.array(windows, dtype=np.int64).reshape(-1, 3)
        return cls([number for each, number in pairs if each.first is None], rows_n3)

    def __bool__(self) -> bool:
        return bool(self.whole) or len(self.windows) > 0

    def at(self, step: int) -> frozenset[int]:
        """Numbers of the passages that update `step` (from 1) does not see."""
        if not len(self.windows):
            return self.whole
        first, last = self.windows[:, 1], self.windows[:, 2]
        return self.whole.union(self.windows[(first <= step) & (step <= last), 0].tolist())
