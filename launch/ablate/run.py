"""Ablations: one configuration, many overrides, one table.

    headwater ablate ablation/trackstar          # 60 ways of tracing, on one pretraining
    headwater ablate ablation/trackstar parallel=2
    headwater ablate report ablation/trackstar   # table.json, cells.csv and plots of what is finished

A sweep is the product of named `cells`, the `grid` and the `seeds`. Every cell is a run directory under `out`, made by
a process of its own: a cell that fails is named and does not stop the others, one that is finished is not run again,
and one that was killed goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from headwater.configs import UserError
from headwater.launch.ablate.cells import Cell, expand, prepare
from headwater.launch.ablate.report import write_report
from headwater.launch.ablate.settings import AblateSettings, SlurmSettings
from headwater.launch.parts.pool import run_parts
from headwater.train.artifacts import write_bytes


def run_ablation(settings: AblateSettings, say: Callable[[str], None] = print) -> int:
    """Runs what is not finished, then writes the report; returns how many cells failed.

    Raises:
        ConfigError, MismatchError: a cell cannot be configured; nothing is run.
    """
    cells = expand(settings)
    for cell in cells:
        prepare(settings, cell)
    if settings.slurm.enabled:
        waiting = [cell for cell in cells if not cell.is_done()]
        say(f"{len(cells)} cells, {len(cells) - len(waiting)} finished before")
        for cell in waiting:
            submit(settings, cell, say)
        return 0
    if settings.run and not (Path(settings.run) / "config.yaml").exists():
        say(f"{settings.run} is no run: what is traced is pretrained first")
    failed = run_parts(cells, settings.parallel, say, "cells")
    write_report(settings, cells)
    for cell in failed:
        say(f"failed: {cell.name} (see {cell.log})")
    return len(failed)


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
    return one_process_script(options, [sys.executable, "-m", cell.module, str(cell.path)])
