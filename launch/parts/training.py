"""A pretraining as a part, or before one: whether it has ended, and its files in another directory."""

from __future__ import annotations

import os
from pathlib import Path

from headwater.train.artifacts import remove
from headwater.train.settings import PretrainSettings


def last_step(settings: PretrainSettings) -> int:
    """The step at which a pretraining ends."""
    return min(settings.train.steps, settings.train.hard_stop or settings.train.steps)


def trained_steps(path: Path) -> int:
    """The step of a run directory's newest whole checkpoint; 0 if there is none."""
    # A checkpoint that was being written when the run was killed has its note already, under a `.part` name.
    found = [place.parent for place in path.glob("checkpoints/step-*/checkpoint.json")]
    return max((int(each.name.split("-")[1]) for each in found if not each.suffix), default=0)


def is_trained(path: Path, settings: PretrainSettings) -> bool:
    """Whether a run directory holds the last checkpoint of these settings."""
    return trained_steps(path) >= last_step(settings)


def pretrain_whole(path: Path, settings: PretrainSettings) -> int:
    """Pretrains, or goes on, in this process; returns the exit status, which is 1 where it was asked to stop."""
    from headwater.train.__main__ import pretrain

    return pretrain(settings) or (0 if is_trained(path, settings) else 1)


def link(target: Path, place: Path) -> None:
    """Makes `place` a relative link to `target`, if there is one; a link that was there is replaced."""
    if not target.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        remove(place)
    place.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))
