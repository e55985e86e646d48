"""Ablations: one configuration, many overrides, one table.

    headwater ablate configs/ablation/trackstar.yaml          # 36 ways of tracing, on one pretraining
    headwater ablate configs/ablation/trackstar.yaml parallel=2
    headwater ablate report configs/ablation/trackstar.yaml   # table.json, cells.csv and plots of what is finished

A sweep is the product of named `cells`, the `grid` and the `seeds`. Every cell is a run directory under `out`, made by
a process of its own: a cell that fails is named and does not stop the others, one that is finished is not run again,
and one that was killed goes on where it was.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headwater.configs import ConfigError, Problem, UserError, load_config, section, setting
from headwater.launch.demo import DemoSettings
from headwater.launch.jobs.pieces import run_pieces
from headwater.launch.parts.training import is_trained
from headwater.train.artifacts import RunDir, fingerprint, read_json, remove, require_match, write_bytes, write_json
from headwater.train.settings import PretrainSettings

KINDS = ("pretrain", "demo", "trace", "storage")


@dataclass(kw_only=True, slots=True)
class SlurmSettings:
    """Cells as SLURM jobs."""

    enabled: bool = setting(False, "Write an sbatch script for each cell instead of running it here.")
    submit: bool = setting(False, "Also submit the scripts.")
    nodes: int = setting(1, "Machines of a `pretrain` cell; the other kinds take one.", minimum=1)
    gpus_per_node: int = setting(1, "GPUs of each machine.", minimum=1)
    time_limit: str = setting("04:00:00", "SLURM's time limit, [D-]HH:MM:SS.")
    notice_minutes: int = setting(10, "Minutes before the limit at which a run saves and stops.", minimum=1)
    partition: str | None = setting(None, "SLURM partition.")
    account: str | None = setting(None, "SLURM account.")


@dataclass(kw_only=True, slots=True)
class AblateSettings:
    """A sweep: a preset, and what is changed in it from cell to cell."""

    out: str = setting("runs/ablation", "Where the cells and the table go.")
    kind: str = setting(
        "pretrain",
        "What a cell is: a pretraining run, a whole demo, one way of tracing (an index and its evaluation) on a "
        "pretraining that cells share, or a study of storage.",
        choices=KINDS,
    )
    preset: str = setting("configs/pretrain/tiny.yaml", "The configuration of every cell (`trace` takes a demo's).")
    overrides: list[str] = setting([], "key=value for every cell.")
    cells: dict[str, Any] = setting({}, "Lists of key=value by name; crossed with grid and seeds.")
    grid: dict[str, Any] = setting({}, "Lists of values by key; `pretrain.KEY` reaches a demo's pretraining.")
    seeds: list[int] = setting([0], "Every cell once for each.", minimum=0)
    run: str = setting("", "For `trace`: a finished run whose pretraining is taken where it is the cell's own.")
    parallel: int = setting(1, "Cells that run at once.", minimum=1)
    slurm: SlurmSettings = section(SlurmSettings)

    def problems(self) -> Iterator[Problem]:
        for name, values in self.grid.items():
            if not isinstance(values, list) or not values:
                yield Problem(f"grid.{name}", values, "a list of values", f"write {name}: [{values}]")
        for name, overrides in self.cells.items():
            if not isinstance(overrides, list) or not all(isinstance(each, str) and "=" in each for each in overrides):
                yield Problem(f"cells.{name}", overrides, "a list of key=value")
        if not self.seeds:
            yield Problem("seeds", self.seeds, "at least one seed")
        if self.run and self.kind != "trace":
            yield Problem("run", self.run, "empty unless kind is trace")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its directory, made of what is particular to it.
        factors: level of every factor, `seed` included.
        overrides: key=value of its configuration.
        settings: its configuration, resolved: PretrainSettings, DemoSettings or StorageSettings.
    """

    name: str
    path: Path
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
    problems: list[Problem] = []
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
            problems += [replace(each, key=f"{name}: {each.key}") for each in error.problems]
            continue
        found.append(Cell(name, path, {**factors, "seed": seed}, overrides, loaded))
    if problems:
        raise ConfigError(problems, "the sweep")
    names = [cell.name for cell in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError("two cells have the same name", got=", ".join(twice), fix="remove the repeated value or seed")
    return found


def configure(settings: AblateSettings, overrides: list[str], path: Path, seed: int) -> tuple[list[str], Any]:
    """A cell's overrides and its checked settings."""
    if settings.kind == "pretrain":
        overrides = [*overrides, f"seed={seed}", f"corpus.seed={seed}", f"out={path}"]
        return overrides, load_config(PretrainSettings, settings.preset, overrides)
    if settings.kind == "storage":
        from headwater.launch.studies.storage.study import Storage, StorageSettings

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


def is_done(kind: str, cell: Cell) -> bool:
    """Whether what a cell is to make is there, whole."""
    run = RunDir(cell.path)
    if kind == "trace":
        return (cell.path / "done.json").exists()
    if kind == "storage":
        return (cell.path / "summary.json").exists()
    if kind == "demo":
        return (run.report / "summary.json").exists() and "report" in _timings(cell.path)
    return is_trained(cell.path, cell.pretraining)


def _timings(path: Path) -> dict[str, float]:
    return read_json(path / "timings.json") if (path / "timings.json").exists() else {}


def prepare(settings: AblateSettings, cell: Cell) -> None:
    """Writes down what a cell is, or refuses a directory that holds another one."""
    stated = {"kind": settings.kind, "settings": asdict(cell.settings), "pretraining": asdict(cell.pretraining)}
    path = cell.path / "cell.json"
    if path.exists():
        what = f"{cell.path} holds a cell of other settings"
        require_match(what, read_json(path)["fingerprint"], fingerprint(stated), "choose another out=, or remove it")
    task = {"preset": settings.preset, "overrides": cell.overrides, "run": settings.run}
    shared = str(Path(settings.out) / "shared")
    entry = {"fingerprint": fingerprint(stated), "kind": settings.kind, "factors": cell.factors, "shared": shared}
    write_json(path, {**entry, **task})


def run_ablation(settings: AblateSettings, say: Callable[[str], None] = print) -> int:
    """Runs what is not finished, then writes the report; returns how many cells failed.

    Raises:
        ConfigError, MismatchError: a cell cannot be configured; nothing is run.
    """
    from headwater.launch.ablate.report import write_report

    cells = expand(settings)
    waiting = [cell for cell in cells if not is_done(settings.kind, cell)]
    for cell in cells:
        prepare(settings, cell)
    say(f"{len(cells)} cells, {len(cells) - len(waiting)} finished before")
    if settings.slurm.enabled:
        for cell in waiting:
            submit(settings, cell, say)
        return 0
    failed = run_cells(waiting, settings.parallel, say)
    write_report(settings, cells)
    for name in failed:
        say(f"failed: {name} (see {settings.out}/cells/{name}/log.txt)")
    return len(failed)


def run_cells(
    cells: list[Cell], parallel: int, say: Callable[[str], None], module: str = "headwater.launch.ablate.process"
) -> list[str]:
    """Runs cells in processes of their own, `parallel` at once; returns the names of those that failed."""

    def ended(cell: Cell, status: int) -> bool:
        note_end(cell, status)
        return True

    return [cell.name for cell in run_pieces(cells, parallel, module, say, ended)]


def note_end(cell: Cell, status: int) -> None:
    """Keeps why a cell failed beside it; a later success takes the note away."""
    path = cell.path / "failed.json"
    if status == 0:
        remove(path)
        return
    lines = (cell.path / "log.txt").read_text(errors="replace").splitlines()
    errors = [line for line in lines if "rror" in line] or lines
    write_json(path, {"status": status, "error": errors[-1].strip() if errors else ""})


def submit(settings: AblateSettings, cell: Cell, say: Callable[[str], None]) -> None:
    """Writes a cell's sbatch script, and submits it if asked."""
    from headwater.launch.jobs.job import Job
    from headwater.launch.jobs.launch import launch_job

    slurm = settings.slurm
    if settings.kind == "pretrain":
        job = Job(
            config=settings.preset,
            overrides=cell.overrides,
            nodes=slurm.nodes,
            gpus_per_node=slurm.gpus_per_node,
            slurm=True,
            time_limit=slurm.time_limit,
            notice_minutes=slurm.notice_minutes,
            partition=slurm.partition,
            account=slurm.account,
        )
        launch_job(job, submit=slurm.submit)
        return
    script = cell.path / "launch.sbatch"
    write_bytes(script, cell_script(slurm, cell).encode())
    say(f"wrote {script}")
    if slurm.submit:
        try:
            subprocess.run(["sbatch", str(script)], check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise UserError(f"{script} was not submitted", got=error, fix="submit it where SLURM is") from None


def cell_script(slurm: SlurmSettings, cell: Cell) -> str:
    """The sbatch script of a cell that is not a plain pretraining: one process on one machine."""
    from headwater.launch.jobs.slurm import one_process_script

    options = {
        "job-name": cell.name,
        "nodes": 1,
        "ntasks": 1,
        "gpus-per-node": slurm.gpus_per_node,
        "time": slurm.time_limit,
        "output": cell.path.absolute() / "log.txt",
        "open-mode": "append",
        "partition": slurm.partition,
        "account": slurm.account,
    }
    return one_process_script(options, [sys.executable, "-m", "headwater.launch.ablate.process", str(cell.path)])
