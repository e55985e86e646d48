"""The runs of the study of acquisition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Part:
    """One run of the study.

    Attributes:
        stage: updates of the base model from which it goes on.
        copies: how often a passage stands in a batch that shows it.
    """

    path: Path
    base: Path
    seed: int
    stage: int
    batch: int
    copies: int

    @property
    def label(self) -> str:
        share = f", {self.copies} copies" if self.copies > 1 else ""
        return f"stage {self.stage}, batch {self.batch}{share}"
