"""The cells of a sweep: what each is, whether it is finished, and the note that its process reads."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headwater.configs import ConfigError, Problem, UserError, load_config
from headwater.launch.ablate.settings import AblateSettings
from headwater.launch.demo import DemoSettings
from headwater.launch.parts.part import Part
from headwater.launch.parts.settings import keep_settings
from headwater.launch.parts.training import is_trained
from headwater.train.artifacts import RunDir, fingerprint, read_json
from headwater.train.settings import PretrainSettings


@dataclass(frozen=True, kw_only=True)
class Cell(Part):
    """One run of a sweep; its name is made of what is particular to it.

    Attributes:
        kind: of the sweep.
        factors: level of every factor, `seed` included.
        overrides: key=value of its configuration.
        settings: its configuration, resolved: PretrainSettings, DemoSettings or StorageSettings.
    """

    module = "headwater.launch.ablate.process"

    kind: str
    factors: dict[str, Any]
    overrides: list[str]
    settings: Any

    @property
    def pretraining(self) -> PretrainSettings:
        if isinstance(self.settings, PretrainSettings):
            return self.settings
        if isinstance(self.settings, DemoSettings):
            return pretraining_of(self.settings)
        return load_config(PretrainSettings, self.settings.preset, self.settings.pretrain)

    def is_done(self) -> bool:
        if self.kind == "trace":
            return (self.path / "done.json").exists()
        if self.kind == "storage":
            return (self.path / "summary.json").exists()
        if self.kind == "demo":
            return (RunDir(self.path).report / "summary.json").exists() and "report" in _timings(self.path)
        return is_trained(self.path, self.pretraining)


def pretraining_of(settings: DemoSettings) -> PretrainSettings:
    """The pretraining of a demo: its preset, overrides and seed."""
    seeds = [f"out={settings.out}", f"seed={settings.seed}", f"corpus.seed={settings.seed}"]
    return load_config(PretrainSettings, settings.preset, [*settings.pretrain, *seeds])


def expand(settings: AblateSettings) -> list[Cell]:
    """The cells of a sweep, in order.

    Raises:
        ConfigError: with the problems of every cell that cannot be configured.
    """
    short = short_names(list(settings.grid))
    found: list[Cell] = []
    problems: dict[str, tuple[Problem, list[str]]] = {}
    named = settings.cells or {"": []}
    for (label, extra), *values, seed in itertools.product(named.items(), *settings.grid.values(), settings.seeds):
        factors: dict[str, Any] = {"cell": label} if label else {}
        factors.update({short[key]: value for key, value in zip(settings.grid, values, strict=True)})
        name = "_".join([*([label] if label else []), *(f"{k}-{v}" for k, v in factors.items() if k != "cell")])
        if len(settings.seeds) > 1 or not name:
            name = "_".join(filter(None, [name, f"seed-{seed}"]))
        name = re.sub(r"[^\w.+-]+", "-", name)
        grid = [f"{key}={as_yaml(value)}" for key, value in zip(settings.grid, values, strict=True)]
        path = Path(settings.out) / "cells" / name
        try:
            overrides, loaded = configure(settings, [*settings.overrides, *extra, *grid], path, seed)
        except ConfigError as error:
            for each in error.problems:
                problems.setdefault(str(each), (each, []))[1].append(name)
            continue
        levels = {**factors, "seed": seed}
        kind = settings.kind
        found.append(Cell(name=name, path=path, kind=kind, factors=levels, overrides=overrides, settings=loaded))
    if problems:
        raise ConfigError([of_cells(problem, names) for problem, names in problems.values()], "the sweep")
    names = [cell.name for cell in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError("two cells have the same name", got=", ".join(twice), fix="remove the repeated value or seed")
    return found


def of_cells(problem: Problem, names: list[str]) -> Problem:
    """A problem with the cells that have it."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return replace(problem, key=f"{names[0]}{more}: {problem.key}")


def configure(settings: AblateSettings, overrides: list[str], path: Path, seed: int) -> tuple[list[str], Any]:
    """A cell's overrides and its checked settings."""
    if settings.kind == "pretrain":
        overrides = [*overrides, f"seed={seed}", f"corpus.seed={seed}", f"out={path}"]
        return overrides, load_config(PretrainSettings, settings.preset, overrides)
    if settings.kind == "storage":
        from headwater.launch.studies.storage.settings import StorageSettings
        from headwater.launch.studies.storage.study import Storage

        overrides = [*overrides, f"seeds=[{seed}]", f"out={path}"]
        study = load_config(StorageSettings, settings.preset, overrides)
        Storage(study)  # so that a mistake in what it names is found before anything starts
        return overrides, study
    pretrain = [each.removeprefix("pretrain.") for each in overrides if each.startswith("pretrain.")]
    own = [each for each in overrides if not each.startswith("pretrain.")] + [f"seed={seed}", f"out={path}"]
    demo = load_config(DemoSettings, settings.preset, own)
    demo = replace(demo, pretrain=[*demo.pretrain, *pretrain])
    pretraining_of(demo)  # so that a mistake in it is found before anything starts
    return [*own, f"pretrain={json.dumps(demo.pretrain)}"], demo


def short_names(keys: list[str]) -> dict[str, str]:
    """The last names of dotted keys, with as many names before as tell them apart."""
    short: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            short[key] = ".".join(parts[-length:])
            if sum(other == key or other.endswith("." + short[key]) for other in keys) == 1:
                break
    return short


def as_yaml(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _timings(path: Path) -> dict[str, float]:
    return read_json(path / "timings.json") if (path / "timings.json").exists() else {}


def prepare(settings: AblateSettings, cell: Cell) -> None:
    """Writes down what a cell is, or refuses a directory that holds another one."""
    stated = {"kind": settings.kind, "settings": asdict(cell.settings), "pretraining": asdict(cell.pretraining)}
    keep_settings(
        cell.path / "cell.json",
        stated,
        home=Path(settings.out),
        mark=fingerprint(stated),
        what=f"{cell.path} holds a cell of other settings",
        fix="choose another out=, or remove it",
        note={
            "kind": settings.kind,
            "factors": cell.factors,
            "shared": str(Path(settings.out) / "shared"),
            "preset": settings.preset,
            "overrides": cell.overrides,
            "run": settings.run,
        },
    )
