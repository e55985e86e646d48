"""A pretraining as a part, or before one: whether it has ended, and its files in another directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from headwater.configs import load_config
from headwater.launch.parts.part import Part, name_of
from headwater.launch.parts.settings import keep_settings
from headwater.train.artifacts import fingerprint, read_json, remove, write_json
from headwater.train.settings import PretrainSettings

SHARED = ("tokenizer.json", "corpus", "facts")
"""What a training takes from another's directory, as links, where both have the same corpus."""

TRACED = (*SHARED, "config.yaml", "checkpoints", "ledger", "probes.parquet", "metrics.jsonl")
"""What a way of tracing takes from a pretraining that others trace too, as links."""


@dataclass(frozen=True, kw_only=True)
class TrainingPart(Part):
    """One training of a study.

    Attributes:
        factors: what sets it apart from the study's others.
        preset, overrides: its configuration, as `headwater pretrain` takes it.
        settings: the same, resolved.
    """

    factors: dict[str, Any]
    preset: str
    overrides: list[str]
    settings: PretrainSettings

    @classmethod
    def planned(
        cls, path: Path, factors: dict[str, Any], preset: str, overrides: list[str], after: tuple[str, ...] = ()
    ) -> Self:
        """The training of a directory.

        Raises:
            ConfigError: of its configuration.
        """
        settings = load_config(PretrainSettings, preset, overrides)
        return cls(
            name=name_of(path),
            path=path,
            after=after,
            factors=factors,
            preset=preset,
            overrides=overrides,
            settings=settings,
        )

    @property
    def home(self) -> Path:
        """A directory that holds whatever its settings name and the study makes."""
        return self.path

    def is_done(self) -> bool:
        return is_trained(self.path, self.settings)

    def prepare(self) -> None:
        """Writes down what the part is, for its process, or refuses a directory that holds another one."""
        settings = asdict(self.settings)
        keep_settings(
            self.path / "part.json",
            settings,
            home=self.home,
            mark=fingerprint(settings),
            what=f"{self.path} holds a training of other settings",
            fix="choose another out=, or remove it",
            note={"factors": self.factors, "preset": self.preset, "overrides": self.overrides},
        )


def counting_seconds(work: Callable[[Path, dict[str, Any]], int]) -> Callable[[Path, dict[str, Any]], int]:
    """The same work, whose seconds are added to what earlier attempts have spent, in PATH/seconds.json."""

    def counted(path: Path, task: dict[str, Any]) -> int:
        began = time.perf_counter()
        status = work(path, task)
        kept = path / "seconds.json"
        before = read_json(kept) if kept.exists() else 0
        write_json(kept, round(before + time.perf_counter() - began, 1))
        return status

    return counted


def spent_minutes(parts: Iterable[Path]) -> float:
    """Minutes that parts have taken, one after the other."""
    return sum(read_json(path / "seconds.json") for path in parts if (path / "seconds.json").exists()) / 60


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


def share_corpus(model: Path, path: Path) -> None:
    """Links the corpus of one run directory, with tokenizer and facts, into another."""
    for name in SHARED:
        link(model / name, path / name)


def share_run(source: Path, path: Path) -> None:
    """Links what tracing reads of a pretraining into a directory of one's own, which takes the indexes."""
    for name in TRACED:
        link(source / name, path / name)


def link(target: Path, place: Path) -> None:
    """Makes `place` a relative link to `target`, if there is one; a link that was there is replaced."""
    if not target.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        remove(place)
    place.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))
