"""When a passage was seen in training, from the ledger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.attribution.tracing.opened import Opened
from headwater.train.callbacks.ledger_lookup import seen_steps


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
        passages, steps = seen_steps(opened.run.ledger, passages)
        before = steps <= opened.index.manifest["model"]["step"]
        return cls(passages[before], steps[before])

    def steps(self, passage: int) -> list[int]:
        start, stop = np.searchsorted(self.passages, [passage, passage + 1])
        return self.step_of[start:stop].tolist()
