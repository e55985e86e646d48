"""What the parts of a study have left: queries, passages, halves, and what each model said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headwater.attribution.tracing.queries import Query, read_queries
from headwater.launch.studies.lds.halves import draw_halves
from headwater.launch.studies.lds.outputs import read_outputs
from headwater.launch.studies.lds.settings import LdsSettings, half_path, model_run, queries_file
from headwater.train.stream.passages import PassageSet, open_passages


@dataclass(frozen=True, slots=True)
class Measured:
    """The trainings of a study.

    Attributes:
        queries, passages: in the order of all columns below.
        inside_MN: bool, the passages that each half's model was trained on.
        outputs_MQ: float64, the log-probability that it gave each target.
        again_AQ: the same of the first A halves trained from other weights.
        whole_Q: the same of the whole corpus's model.
    """

    queries: list[Query]
    passages: PassageSet
    inside_MN: np.ndarray
    outputs_MQ: np.ndarray
    again_AQ: np.ndarray
    whole_Q: np.ndarray

    @property
    def kinds_Q(self) -> np.ndarray:
        return np.array([query.record["kind"] for query in self.queries])


def read_measured(out: Path, settings: LdsSettings) -> Measured:
    """Reads a study's trainings.

    Raises:
        MissingError: one is not there.
    """
    run = model_run(out)
    queries, passages = read_queries(queries_file(out)), open_passages(run)

    def said(count: int, again: bool) -> np.ndarray:
        rows = [read_outputs(half_path(out, number, again))[:, 0] for number in range(count)]
        return np.stack(rows) if rows else np.zeros((0, len(queries)))

    return Measured(
        queries,
        passages,
        draw_halves(len(passages), settings.models, settings.seed),
        said(settings.models, again=False),
        said(settings.again, again=True),
        read_outputs(run.path)[:, 0],
    )
