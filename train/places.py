"""Where an artifact's sources lie, noted in it so that they are found again when it, they, or both have been moved.

A place is noted relative to the artifact, then absolutely: a tree that was moved or copied as a whole is read where it
is now; a source that stayed behind is found where it was. What is found is held against a fingerprint by whoever reads
it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def note_place(target: str | os.PathLike[str], beside: str | os.PathLike[str]) -> list[str]:
    """How the artifact at `beside` notes the place of `target`."""
    there, here = Path(target).resolve(), Path(beside).resolve()
    return [os.path.relpath(there, here), str(there)]


def noted_places(noted: Sequence[str], beside: str | os.PathLike[str]) -> list[Path]:
    """Where a noted target may be, the likelier place first."""
    here = Path(beside).resolve()
    return list(dict.fromkeys(Path(os.path.normpath(here / each)) for each in noted))
