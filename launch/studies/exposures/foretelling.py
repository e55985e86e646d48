"""What dropping exposures will do, foretold from one training: of each predictor one number a cell.

An exposure at step t has moved the weights by about -lr_t g; without it, the question's log-probability at the end is
lower by lr_t <q, g>, in the metric that the rows are whitened with. g is the row that was captured at that visit, q the
question's row at the last checkpoint, or at the first one after the visit (as TracIn sums them; Pruthi et al. 2020).
What training did with the difference afterwards is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.capture.visits import read_visits
from headwater.attribution.index.reader import Index, open_index
from headwater.attribution.models.base import EPS
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.rows.norms import unit_rows
from headwater.attribution.settings import ProjectionSettings
from headwater.attribution.tracing.queries import Query
from headwater.attribution.tracing.query_rows import query_rows
from headwater.launch.studies.exposures.cells import Cell, queries_of
from headwater.launch.studies.exposures.settings import OURS, PREDICTORS
from headwater.train import parallel
from headwater.train.artifacts import RunDir
from headwater.train.checkpoint import open_checkpoint, steps_in
from headwater.train.parallel import World
from headwater.train.stream.passages import PassageSet, open_passages


def foretell(run: RunDir, cells: Mapping[str, Sequence[Cell]], seed: int) -> dict[str, dict[str, list[float]]]:
    """Of each training that drops something, and of each predictor, a number for each of its cells; higher where more
    is lost.

    Args:
        run: the training that saw everything, with captured visits and checkpoints.
    """
    names = [(name, place) for name, each in cells.items() for place in range(len(each))]
    flat = [cells[name][place] for name, place in names]
    told_PC = foretold(run, flat, np.random.default_rng([seed, 0xF0]))
    found: dict[str, dict[str, list[float]]] = {}
    for number, (name, _) in enumerate(names):
        for predictor, values in told_PC.items():
            found.setdefault(name, {}).setdefault(predictor, []).append(float(values[number]))
    return found


def foretold(run: RunDir, cells: Sequence[Cell], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Of each predictor float64 [cells]."""
    queries, passages = queries_of(run.path.parent), open_passages(run)
    probes = sorted({cell.probe for cell in cells})
    asked_C = np.searchsorted(probes, [cell.probe for cell in cells])
    index = open_index(run.index("captured"))
    world = parallel.start()
    try:
        asked = [queries[number] for number in probes]
        rows = {step: rows_at(run, index, step, world, passages, asked) for step in steps_of(run)}
    finally:
        parallel.stop()
    told = {name: np.zeros(len(cells)) for name in PREDICTORS}
    last_C = np.zeros(len(cells))
    numbers = [passages.numbers_of(cell.passages) for cell in cells]
    questions = Questions(rows, index)
    for visits in read_visits(run):
        passage_n, step_n, lr_n = (np.asarray(visits[key]) for key in ("passage", "step", "lr"))
        for place, cell in enumerate(cells):
            mine = np.isin(passage_n, numbers[place]) & (cell.first <= step_n) & (step_n <= cell.last)
            if not mine.any():
                continue
            taken = torch.from_numpy(np.flatnonzero(mine))
            for name, each in questions.gains(visits["rows"][taken], step_n[mine], int(asked_C[place])).items():
                told[name][place] += float((each * lr_n[mine]).sum())
            told["lr"][place] += lr_n[mine].sum()
            told["count"][place] += mine.sum()
            last_C[place] = max(last_C[place], step_n[mine].max())
    index.close()
    told["recency"] = last_C - max(rows)
    told["random"] = rng.standard_normal(len(cells))
    return told


def steps_of(run: RunDir) -> list[int]:
    """The checkpoints that have been trained to."""
    return [step for step in steps_in(run.checkpoints) if step]


def rows_at(
    run: RunDir, index: Index, step: int, world: World, passages: PassageSet, queries: Sequence[Query]
) -> Tensor:
    """The questions' raw rows at a checkpoint, made as the captured ones, float32 [Q, D]."""
    meta = index.manifest
    model = HeadwaterModel(open_checkpoint(run.checkpoint(step)), world, meta["model"]["precision"])
    projection = ProjectionSettings(**meta["projection"])
    collector = GradientCollector(model, projection, meta["correction"], meta["loss"], meta.get("eps", EPS))
    return query_rows(collector, passages.tokenizer, queries)


class Questions:
    """What visits' rows are multiplied with.

    Args:
        raw: the questions' raw rows at each checkpoint, float32 [Q, D].
        index: the run's captured rows, for their whitening.
    """

    def __init__(self, raw: Mapping[int, Tensor], index: Index) -> None:
        self.steps, self.whitening = np.array(sorted(raw)), index.whitening
        last = raw[int(self.steps[-1])]
        self.raw_QD = last
        self.white_QD = self.whitening.apply(last)
        self.unit = {step: unit_rows(self.whitening.apply(unit_rows(rows))) for step, rows in raw.items()}

    def gains(self, rows_nD: Tensor, step_n: np.ndarray, question: int) -> dict[str, np.ndarray]:
        """What each visit gave a question, by predictor: float64 [n].

        Args:
            rows_nD: the visits' raw rows.
            step_n: their steps.
        """
        white_nD = self.whitening.apply(rows_nD)
        unit_nD = unit_rows(self.whitening.apply(unit_rows(rows_nD)))
        then_n = self.steps[np.searchsorted(self.steps, step_n)]  # the first one that has been trained on the visit
        then_nD = torch.stack([self.unit[int(step)][question] for step in then_n])
        values = {
            "visits": unit_nD @ self.unit[int(self.steps[-1])][question],
            "visits_then": (unit_nD * then_nD).sum(dim=1),
            "visits_inner": white_nD @ self.white_QD[question],
            "gradient": rows_nD @ self.raw_QD[question],
        }
        assert set(values) == set(OURS)
        return {name: each.double().numpy() for name, each in values.items()}
