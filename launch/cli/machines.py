"""Machines: what this one is, what a run needs of many, and the scripts that start it there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.launch.cli.front import (
    Arguments,
    Keys,
    Yaml,
    load,
    print_settings,
    refuse_bare,
    split_arguments,
)


def plan(
    arguments: Arguments = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    keys: Keys = False,
    yaml: Yaml = False,
) -> None:
    """Say what a pretraining configuration needs on given GPUs, before anything is launched: gpus=64 gpu=h100.

    Parameters, memory, FLOPs, time, checkpoints, index. A layout that cannot work is refused, with the nearest that do.
    """
    from headwater.launch.machines.layouts import PlanSettings
    from headwater.launch.plan.report import run_plan

    if keys or yaml:
        print_settings(PlanSettings, arguments, keys=keys, preset=None, command="headwater plan")
        return
    if not arguments:
        refuse_bare("headwater plan", "pretrain/llama-8b gpus=64 gpu=h100")
    config, overrides = split_arguments(arguments)
    run_plan(config, overrides, as_json=json)


def doctor(json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False) -> None:
    """Say what this machine and environment are, and whether they will do; for a bug report."""
    raise typer.Exit(load("headwater.launch.doctor:run_doctor")(json))


def launch(
    arguments: Arguments = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Processes on each machine.")] = 8,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write an sbatch script instead of a torchrun one.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Also submit it (--slurm) or run it here.")] = False,
    time_limit: Annotated[str, typer.Option(help="SLURM's time limit, [D-]HH:MM:SS.")] = "24:00:00",
    notice: Annotated[int, typer.Option(min=1, help="Minutes before the limit at which the run saves and stops.")] = 10,
    restarts: Annotated[int, typer.Option(min=0, help="Times that torchrun starts failed processes again.")] = 3,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the rendezvous.")] = 29400,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the script goes; RUN/launch.sh if not given.")] = None,
) -> None:
    """Write (and with --submit start) the torchrun or sbatch script of a pretraining run over several machines."""
    from headwater.launch.jobs.job import Job
    from headwater.launch.jobs.launch import launch_job

    if not arguments:
        refuse_bare("headwater launch", "pretrain/llama-8b out=runs/llama-8b --nodes 8 --slurm")
    config, overrides = split_arguments(arguments)
    job = Job(
        config=config,
        overrides=overrides,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        slurm=slurm,
        time_limit=time_limit,
        notice_minutes=notice,
        restarts=restarts,
        port=port,
        partition=partition,
        account=account,
        script=output,
    )
    raise typer.Exit(launch_job(job, submit=submit))
