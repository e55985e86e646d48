"""A sweep on a SLURM cluster: one array job, with a task for each cell that is not finished.

    headwater launch ablate ablation/injection out=/scratch/injection --slurm --submit
    headwater ablate ablation/injection slurm.enabled=true slurm.submit=true      # the same, from the configuration

Each cell has a script of its own, `launch.sh`; OUT/array.txt lists them, and a task runs the one in its line. With
`--chain` a task that was told to stop at its time limit submits itself again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from headwater.configs import ConfigError, Problem, UserError, load_config
from headwater.launch.ablate.cells import Cell, expand, prepare
from headwater.launch.ablate.settings import AblateSettings, SlurmSettings
from headwater.launch.jobs.job import Cluster, Job, read_prologue
from headwater.launch.jobs.launch import check, job_command, start
from headwater.launch.jobs.slurm import beginning, header, read_options, require_notice, work_body
from headwater.train.artifacts import write_bytes


def job_of(slurm: SlurmSettings) -> Job:
    """The job that a sweep's own settings describe."""
    cluster = Cluster(
        partition=slurm.partition,
        account=slurm.account,
        options=read_options(slurm.sbatch),
        gpu_request=slurm.gpu_request,
        exclusive=slurm.exclusive,
        cpus_per_task=slurm.cpus_per_task,
        memory=slurm.memory,
        prologue=read_prologue(Path(slurm.prologue) if slurm.prologue else None),
        image=slurm.container_image,
        mounts=tuple(slurm.container_mounts),
    )
    return Job(
        stage="ablate",
        nodes=slurm.nodes,
        gpus_per_node=slurm.gpus_per_node,
        slurm=True,
        cluster=cluster,
        time_limit=slurm.time_limit,
        notice_minutes=slurm.notice_minutes,
        restarts=slurm.restarts,
        chain=slurm.chain,
    )


def launch_sweep(job: Job, *, submit: bool) -> int:
    """`headwater launch ablate CONFIG --slurm`; returns the exit status.

    Raises:
        UserError: as of `launch_cells`.
    """
    settings = load_config(AblateSettings, job.config, job.overrides)
    return launch_cells(settings, replace(job, gpus_per_node=job.gpus_per_node or 1), submit=submit)


def launch_cells(settings: AblateSettings, job: Job, *, submit: bool, say: Callable[[str], None] = print) -> int:
    """Writes the scripts of the cells that are not finished, and submits them if asked; returns the exit status.

    Raises:
        UserError: a cell cannot be configured, or cannot work on its machines; nothing is written.
    """
    require_notice(job.time_limit, job.notice_minutes)
    if job.chain and settings.kind != "pretrain":
        raise UserError(
            "--chain of a sweep",
            got=f"kind={settings.kind}",
            expected="kind=pretrain, whose cells say how far they are",
            fix="leave out --chain, and submit it again",
        )
    if job.chain and settings.slurm.at_once:
        expected = "0 with --chain: a task that submits itself again is a job of its own, outside of the array's limit"
        fix = "leave out one of them, or limit the jobs by a partition or a QOS (--sbatch qos=NAME)"
        raise ConfigError([Problem("slurm.at_once", settings.slurm.at_once, expected, fix)], "the sweep")
    cells = expand(settings)
    waiting = [cell for cell in cells if not cell.is_done()]
    say(f"{len(cells)} cells, {len(cells) - len(waiting)} finished before")
    if not waiting:
        return 0
    bodies = {cell.name: cell_body(settings, job, cell) for cell in waiting}
    for cell in cells:
        prepare(settings, cell)
    out = Path(settings.out)
    for cell in waiting:
        write_bytes(cell.path / "launch.sh", f"#!/usr/bin/env bash\n{bodies[cell.name]}".encode())
    # All of them: a task that submits itself again later still finds its own line.
    listed = "".join(f"{(cell.path / 'launch.sh').absolute()}\n" for cell in cells)
    write_bytes(out / "array.txt", listed.encode())
    (out / "logs").mkdir(exist_ok=True)
    script = job.script or out / "launch.sbatch"
    write_bytes(script, array_script(settings, job, [cells.index(cell) for cell in waiting]).encode())
    say(f"wrote {script}: {len(waiting)} tasks; when they are done: headwater ablate report")
    return start(["sbatch", str(script)]) if submit else 0


def cell_body(settings: AblateSettings, job: Job, cell: Cell) -> str:
    """What a task does for one cell."""
    if cell.kind == "pretrain":
        checked = check(replace(job, stage="pretrain", config=settings.preset, overrides=cell.overrides))

        def command(endpoint: str, identity: str, python: str) -> list[list[str]]:
            return job_command(checked, endpoint, identity, python)
    else:

        def command(endpoint: str, identity: str, python: str) -> list[list[str]]:
            return [[python, "-m", cell.module, str(cell.path)]]

    return work_body(
        job.cluster,
        nodes=job.nodes if cell.kind == "pretrain" else 1,
        place=cell.path,
        restarts=job.restarts,
        script=job.script or Path(settings.out) / "launch.sbatch",
        command=command,
        port=job.port,
        chain=job.chain,
        is_task=True,
    )


def array_script(settings: AblateSettings, job: Job, tasks: list[int]) -> str:
    """The script of the array, whose tasks are lines of array.txt."""
    numbers = ",".join(map(str, tasks))
    if tasks == list(range(tasks[0], tasks[-1] + 1)):
        numbers = f"{tasks[0]}-{tasks[-1]}"
    out = Path(settings.out).absolute()
    lines = header(
        job.cluster,
        name=out.name,
        nodes=job.nodes if settings.kind == "pretrain" else 1,
        gpus=job.gpus_per_node or 1,
        time_limit=job.time_limit,
        output=f"{out}/logs/slurm-%A_%a.out",
        signal=f"TERM@{job.notice_minutes * 60}",
        array=numbers + (f"%{settings.slurm.at_once}" if settings.slurm.at_once else ""),
    )
    listed = shlex.quote(str(out / "array.txt"))
    one = f'exec bash "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {listed})"'
    return f"#!/usr/bin/env bash\n{lines}\n{beginning(job.cluster)}\n{one}\n"
