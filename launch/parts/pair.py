"""Two runs that differ in what one of them leaves out, and in nothing else, as their ledgers show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headwater.configs.errors import MismatchError
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.ledger_files import COMPARED, ledger_difference
from headwater.train.callbacks.ledger_lookup import seen_steps
from headwater.train.stream.leaving_out import LeftOut, read_exclusions
from headwater.train.stream.passages import open_passages

STEP, PASSAGE, INJECTED = (COMPARED.index(name) for name in ("step", "passage", "injected"))


def compare_ledgers(whole: RunDir, run: RunDir, exclude: Path) -> dict[str, int]:
    """Holds the ledger of a run that leaves something out against that of the run that does not.

    Args:
        exclude: what is left out, as train.exclude takes it.

    Returns:
        How many visits are missing (`dropped`), how many of these were injections (`injected`), and `elsewhere`, how
        many others differ: 0.

    Raises:
        MismatchError: the ledgers differ in something else, or a visit that is to be left out was made.
    """
    given = read_exclusions(str(exclude))
    numbers = open_passages(whole).numbers_of([each.passage for each in given])
    left_out = LeftOut.of(given, numbers)
    gone, new = ledger_difference(whole.ledger, run.ledger)
    wrong = ~meant(left_out, gone[:, STEP], gone[:, PASSAGE])
    met, at = seen_steps(run.ledger, numbers)
    made = meant(left_out, at, met)
    if len(new) or wrong.any() or made.any():
        raise MismatchError(
            f"{run.path} differs from {whole.path} in more than what it leaves out",
            got=f"{len(new)} further visits, {int(wrong.sum())} others missing, {int(made.sum())} not left out",
            expected="the same ledger without the visits that are left out",
            fix="remove the directory and start again",
        )
    return {"dropped": len(gone), "injected": int(gone[:, INJECTED].sum()), "elsewhere": 0}


def meant(left_out: LeftOut, step_n: np.ndarray, passage_n: np.ndarray) -> np.ndarray:
    """Which visits are to be left out: bool [n]."""
    found_n = np.zeros(len(step_n), dtype=bool)
    for step in np.unique(step_n).tolist():
        at = step_n == step
        found_n[at] = np.isin(passage_n[at], list(left_out.at(step)))
    return found_n
