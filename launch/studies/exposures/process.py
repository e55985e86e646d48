"""One part of the study of exposures, in a process of its own.

    python -m headwater.launch.studies.exposures.process runs/study/exposures/seed-0/dropped-003 [CORES]

The training that sees everything makes the corpus first, and when it is trained draws what the others drop, and
foretells it. Each of these takes its corpus, and when it is trained holds its ledger against that of the first: what is
dropped may differ, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs import load_config
from headwater.configs.errors import MismatchError
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, link, pretrain_whole, share_corpus
from headwater.launch.studies.exposures.cells import Cell, queries_of, read_cells, write_cells
from headwater.launch.studies.exposures.settings import ExposuresSettings, model_run, predictions_file
from headwater.launch.studies.lds.outputs import QUERIES
from headwater.train.artifacts import RunDir, write_json
from headwater.train.callbacks.ledger import ledger_difference, read_ledger
from headwater.train.settings import PretrainSettings


def train_and_compare(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    from headwater.train.corpus.build import build_corpus

    home, factors = path.parent, task["factors"]
    pretraining = load_config(PretrainSettings, task["preset"], task["overrides"])
    model = model_run(home)
    if factors["name"] == "model":
        build_corpus(pretraining)
    else:
        share_corpus(model.path, path)
    link(model.facts / "probes.jsonl", path / QUERIES)
    status = pretrain_whole(path, pretraining)
    if status:
        return status
    if factors["name"] != "model":
        write_json(path / "difference.json", compared(model, RunDir(path), read_cells(home)[factors["name"]]))
        return 0
    from headwater.launch.studies.exposures.foretelling import foretell

    settings = load_config(ExposuresSettings, home.parent / "config.yaml")
    write_cells(settings, factors["seed"], queries_of(home), pretraining.train.steps)
    write_json(predictions_file(home), foretell(model, read_cells(home), factors["seed"]))
    return 0


def compared(model: RunDir, run: RunDir, cells: Sequence[Cell]) -> dict[str, int]:
    """How many visits a training has dropped, and of these how many were injected.

    Raises:
        MismatchError: the ledgers differ in something else, or a visit that is to be dropped was made.
    """
    from headwater.train.stream.passages import open_passages

    passages = open_passages(model)
    gone, new = ledger_difference(model.ledger, run.ledger)
    kept = [np.zeros(0, dtype=np.int64)]
    wrong = np.ones(len(gone), dtype=bool)
    for cell in cells:
        numbers = passages.numbers_of(cell.passages)
        wrong &= ~(np.isin(gone[:, 3], numbers) & (cell.first <= gone[:, 0]) & (gone[:, 0] <= cell.last))
        seen = visits_in(run, numbers, cell)
        kept.append(seen)
    left = int(sum(len(each) for each in kept))
    if len(new) or wrong.any() or left:
        raise MismatchError(
            f"{run.path} differs from {model.path} in more than what it drops",
            got=f"{len(new)} further visits, {int(wrong.sum())} others missing, {left} that were to be dropped",
            expected="the same ledger without the visits that are dropped",
            fix="remove the directory and start again",
        )
    return {"dropped": len(gone), "injected": int(gone[:, 5].sum()), "elsewhere": 0}


def visits_in(run: RunDir, numbers: np.ndarray, cell: Cell) -> np.ndarray:
    """Steps at which a run has met passages within a window."""
    steps = np.asarray(read_ledger(run.ledger, numbers)["step"])
    return steps[(cell.first <= steps) & (steps <= cell.last)]


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(train_and_compare)))
