"""When a passage was seen in training, from the ledger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from headwater.attribution.tracing.opened import Opened
from headwater.train.callbacks.ledger import read_ledger


@dataclass(slots=True)
class SeenSteps:
    """The steps at which some passages were seen up to the index's checkpoint."""

    passages: np.ndarray
    step_of: np.ndarray

    @classmethod
    def of(cls, opened: Opened, passages: np.ndarray) -> SeenSteps | None:
        """Those of the passages, int64 [n]; None for a model that has no ledger."""
        if opened.run is None:
            return None
        table = read_ledger(opened.run.ledger, np.unique(passages))
        table = table.filter(pc.less_equal(table["step"], opened.index.manifest["model"]["step"]))
        passages, steps = np.asarray(table["passage"]), np.asarray(table["step"])
        order = np.lexsort((steps, passages))
        return cls(passages[order], steps[order])

    def steps(self, passage: int) -> list[int]:
        start, stop = np.searchsorted(self.passages, [passage, passage + 1])
        return sorted(set(self.step_of[start:stop].tolist()))
