"""The parts of the study of storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.launch.parts.part import Part


@dataclass(frozen=True, kw_only=True)
class StoragePart(Part):
    """One training and what is asked of it.

    Attributes:
        protocol: `pretrain` (biographies, then questions) or `mixed` (both from the start).
        tasks: what is done, in order; each leaves NAME.json.
    """

    module = "headwater.launch.studies.storage.process"

    protocol: str
    variant: str
    seed: int
    tasks: tuple[str, ...]

    def result(self, task: str) -> Path:
        return self.path / f"{task}.json"

    def is_done(self) -> bool:
        return all(self.result(task).exists() for task in self.tasks)
