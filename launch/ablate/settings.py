"""Settings of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headwater.configs import Problem, section, setting
from headwater.launch.jobs.job import GPU_REQUESTS

KINDS = ("pretrain", "demo", "trace", "storage")


@dataclass(kw_only=True, slots=True)
class SlurmSettings:
    """Cells as SLURM jobs."""

    enabled: bool = setting(False, "Write the sbatch script of an array with a task for each cell; run nothing here.")
    submit: bool = setting(False, "Also submit it.")
    at_once: int = setting(0, "Cells that run at once; 0: as many as the cluster gives. Not with `chain`.", minimum=0)
    nodes: int = setting(1, "Machines of a `pretrain` cell; the other kinds take one.", minimum=1)
    gpus_per_node: int = setting(1, "GPUs of each machine.", minimum=1)
    gpu_request: str = setting("gpus", "How to ask for them; none: a CPU partition.", choices=GPU_REQUESTS)
    time_limit: str = setting("04:00:00", "SLURM's time limit of a cell, [D-]HH:MM:SS.")
    notice_minutes: int = setting(10, "Minutes before the limit at which a run saves and stops.", minimum=1)
    chain: bool = setting(False, "A `pretrain` cell that was told to stop submits itself again, until it is done.")
    restarts: int = setting(3, "Times that a failed cell is started again.", minimum=0)
    partition: str | None = setting(None, "SLURM partition.")
    account: str | None = setting(None, "SLURM account.")
    exclusive: bool = setting(False, "A cell shares its machines with no other job.")
    cpus_per_task: int | None = setting(None, "CPU cores of each machine.", minimum=1)
    memory: str | None = setting(None, "Memory of each machine, as SLURM writes it.")
    sbatch: list[str] = setting([], "Any other option of sbatch, KEY=VALUE or KEY.")
    prologue: str = setting("", "A file of shell lines before the work: modules, environment, NCCL variables.")
    container_image: str | None = setting(None, "An image to run in: a .sif file, or what SLURM's pyxis takes.")
    container_mounts: list[str] = setting([], "FROM:TO, beside the working and the cell's directory.")


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
    preset: str = setting("pretrain/tiny", "The configuration of every cell (`trace` takes a demo's).")
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
