"""The parts of the study of storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.launch.parts.part import Part


@dataclass(frozen=True, kw_only=True)
class StoragePart(Part):
    """One training and what is asked of it.

    Attributes:
        protocol: `pretrain` (biographies, then questions), `mixed` (both from the start), `windowed` (mixed, with
            questions in one stretch alone) or `grid` (biographies alone, at another size).
        tasks: what is done, in order; each leaves NAME.json.
        window: of `windowed`, the label of the stretch.
        point: of `grid`, the name of the size.
    """

    module = "headwater.launch.studies.storage.process"

    protocol: str
    variant: str
    seed: int
    tasks: tuple[str, ...]
    window: str = ""
    point: str = ""

    def result(self, task: str) -> Path:
        return self.path / f"{task}.json"

    def is_done(self) -> bool:
        return all(self.result(task).exists() for task in self.tasks)
