"""A piece of work of a sweep or a study that is run once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of work with a directory of its own; `python -m MODULE PATH [CORES]` does it, or goes on with it.

    Attributes:
        name: in messages; no two parts that are run together have the same.
        after: names of the parts that must be finished before this one begins.
    """

    module: ClassVar[str]

    name: str
    path: Path
    after: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """What its processes have printed."""
        return self.path / "log.txt"

    def is_done(self) -> bool:
        """Whether what it is to make is there, whole."""
        raise NotImplementedError


def name_of(path: Path) -> str:
    """A part's name: the directory of its seed, and what it is."""
    return f"{path.parent.name}/{path.name}"
