"""Ablations: one configuration, many overrides, one table.

    headwater ablate ablation/trackstar          # 60 ways of tracing, on one pretraining
    headwater ablate ablation/trackstar parallel=2
    headwater ablate report ablation/trackstar   # table.json, cells.csv and plots of what is finished

A sweep is the product of named `cells`, the `grid` and the `seeds`. Every cell is a run directory under `out`, made by
a process of its own: a cell that fails is named and does not stop the others, one that is finished is not run again,
and one that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headwater.launch.ablate.cells import expand, prepare
from headwater.launch.ablate.report import write_report
from headwater.launch.ablate.settings import AblateSettings
from headwater.launch.parts.pool import run_parts


def run_ablation(settings: AblateSettings, say: Callable[[str], None] = print) -> int:
    """Runs what is not finished, then writes the report; returns how many cells failed. With `slurm.enabled` the cells
    become the tasks of one array job instead.

    Raises:
        ConfigError, MismatchError: a cell cannot be configured; nothing is run.
    """
    if settings.slurm.enabled:
        from headwater.launch.ablate.array import job_of, launch_cells

        return launch_cells(settings, job_of(settings.slurm), submit=settings.slurm.submit, say=say)
    cells = expand(settings)
    for cell in cells:
        prepare(settings, cell)
    if settings.run and not (Path(settings.run) / "config.yaml").exists():
        say(f"{settings.run} is no run: what is traced is pretrained first")
    failed = run_parts(cells, settings.parallel, say, "cells")
    write_report(settings, cells)
    for cell in failed:
        say(f"failed: {cell.name} (see {cell.log})")
    return len(failed)
