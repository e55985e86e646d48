"""The parts of the study of storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Part:
    """One training and what is asked of it.

    Attributes:
        protocol: `pretrain` (biographies, then questions) or `mixed` (both from the start).
        tasks: what is done, in order; each leaves NAME.json.
    """

    path: Path
    protocol: str
    variant: str
    seed: int
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.protocol} {self.variant}, seed {self.seed}"

    def result(self, task: str) -> Path:
        return self.path / f"{task}.json"

    @property
    def is_done(self) -> bool:
        return all(self.result(task).exists() for task in self.tasks)
