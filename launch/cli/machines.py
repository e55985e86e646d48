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
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes on each machine; 8, or 1 where the stage is one process.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Kind of GPU that the layout must fit; any if not given.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write an sbatch script instead of a torchrun one.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Also submit it (--slurm) or run it here.")] = False,
    time_limit: Annotated[str, typer.Option(help="SLURM's time limit, [D-]HH:MM:SS.")] = "24:00:00",
    notice: Annotated[int, typer.Option(min=1, help="Minutes before the limit at which the run saves and stops.")] = 10,
    chain: Annotated[
        bool, typer.Option("--chain", help="Under SLURM: a job that was told to stop submits itself again, until done.")
    ] = False,
    restarts: Annotated[int, typer.Option(min=0, help="Times that torchrun starts failed processes again.")] = 3,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the rendezvous.")] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="Any other option of sbatch, KEY=VALUE or KEY; may be given often.")
    ] = None,
    gpu_request: Annotated[
        str, typer.Option(help="How to ask for GPUs: gpus (--gpus-per-node), gres (gpu:N), none (a CPU partition).")
    ] = "gpus",
    exclusive: Annotated[
        bool | None, typer.Option(help="Share the machines with no other job; the default of pretrain and index.")
    ] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="CPU cores of each machine.")] = None,
    mem: Annotated[str | None, typer.Option(help="Memory of each machine, as SLURM writes it.")] = None,
    prologue: Annotated[
        Path | None, typer.Option(help="A file of shell lines before the work: modules, environment, NCCL variables.")
    ] = None,
    container_image: Annotated[
        str | None, typer.Option(help="An image to run in: a .sif file (Apptainer), or what SLURM's pyxis takes.")
    ] = None,
    container_mounts: Annotated[
        list[str] | None, typer.Option(help="FROM:TO, beside the working and the run directory; may be given often.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where the script goes; RUN/launch.sh if not given.")] = None,
) -> None:
    """Write (and with --submit start) the torchrun or sbatch script of a stage: headwater launch [STAGE] CONFIG ...

    STAGE: pretrain (if left out), index, corpus, queries, trace, select, evaluate, report, demo, ablate, study NAME.
    """
    from headwater.launch.jobs.job import GPU_REQUESTS, Cluster, Job, one_of, read_prologue
    from headwater.launch.jobs.launch import launch_job
    from headwater.launch.jobs.slurm import read_options
    from headwater.launch.jobs.stages import STAGES, split_stage

    if not arguments:
        refuse_bare("headwater launch", "pretrain/llama-8b out=runs/llama-8b --nodes 8 --slurm")
    stage, words = split_stage(arguments or [])
    config, overrides = split_arguments(words)
    cluster = Cluster(
        partition=partition,
        account=account,
        options=read_options(sbatch or []),
        gpu_request=one_of("--gpu-request", gpu_request, GPU_REQUESTS),
        exclusive=STAGES[stage].module is not None if exclusive is None else exclusive,
        cpus_per_task=cpus_per_task,
        memory=mem,
        prologue=read_prologue(prologue),
        image=container_image,
        mounts=tuple(container_mounts or ()),
    )
    job = Job(
        stage=stage,
        config=config,
        overrides=overrides,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu=gpu,
        slurm=slurm,
        cluster=cluster,
        time_limit=time_limit,
        notice_minutes=notice,
        chain=chain,
        restarts=restarts,
        port=port,
        script=output,
    )
    if stage == "ablate" and slurm:
        raise typer.Exit(load("headwater.launch.ablate.array:launch_sweep")(job, submit=submit))
    raise typer.Exit(launch_job(job, submit=submit))
