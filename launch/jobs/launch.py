"""`headwater launch`: the script that starts a pretraining run on several machines, for torchrun or for SLURM.

    headwater launch pretrain/llama-8b --nodes 8 --gpus-per-node 8 --slurm --submit out=/scratch/runs/8b

The script meets failures on four levels: torchrun starts failed processes again (`--restarts`); an agent that was
killed may be started again by the same script, and the others wait for it (under SLURM all agents are, as often); SLURM
puts a job whose machine failed back into the queue; and SIGTERM comes early enough before the time limit for a
checkpoint to be saved. The run goes on from its newest whole checkpoint each time.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from headwater.configs import ConfigError, UserError, load_config
from headwater.launch.jobs.command import ShellText, script
from headwater.launch.jobs.job import ENVIRONMENT, Job, job_command
from headwater.launch.jobs.slurm import limit_seconds, slurm_script
from headwater.launch.machines.layouts import PlanSettings, division_problems, vocabulary
from headwater.train.artifacts import require_directory, write_bytes
from headwater.train.settings import PretrainSettings

HEAD, ADDRESS = "HEADWATER_HEAD", "HEADWATER_ADDRESS"
"""Variables of the torchrun script: the first machine's name, and this machine's own address where it must be told."""


def launch_job(job: Job, *, submit: bool) -> int:
    """Checks the run, writes its script, and with `submit` starts it; returns the exit status.

    Raises:
        UserError: the configuration or its layout on these machines cannot work; nothing is written.
    """
    settings = check(job)
    out = Path(settings.out)
    script = job.script or out / ("launch.sbatch" if job.slurm else "launch.sh")
    write_bytes(script, script_text(job, settings).encode())
    (out / "logs").mkdir(parents=True, exist_ok=True)  # SLURM does not make the directory of its output
    script.chmod(0o755)
    print(f"wrote {script}")
    if not submit:
        print(how_to_start(job, script))
        return 0
    environment = dict(os.environ)
    if not job.slurm and job.nodes > 1:
        environment.setdefault(HEAD, os.uname().nodename)
        print(f"on each of the other {job.nodes - 1} machines: {HEAD}={environment[HEAD]} bash {script}", flush=True)
    command = ["sbatch" if job.slurm else "bash", str(script)]
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not on this machine", fix=f"submit it where SLURM is: sbatch {script}"
        ) from None


def check(job: Job) -> PretrainSettings:
    """The run's settings, checked against the machines."""
    if job.config is None:
        raise UserError("launch needs a configuration", expected="a YAML file or a preset as the first argument")
    settings = load_config(PretrainSettings, job.config, job.overrides)
    require_directory(Path(settings.out))
    if job.slurm:
        seconds = limit_seconds(job.time_limit)
        if seconds <= job.notice_minutes * 60:
            raise UserError(
                "--notice is not shorter than --time-limit",
                got=f"{job.notice_minutes} min, {job.time_limit}",
                expected="minutes before the limit that leave the run some time",
                fix="raise --time-limit, or lower --notice",
            )
    machines = PlanSettings(gpus=job.nodes * job.gpus_per_node, gpus_per_node=job.gpus_per_node)
    problems = list(division_problems(settings, machines, vocabulary(settings)))
    if problems:
        raise ConfigError(problems, f"{job.config} on {job.nodes} x {job.gpus_per_node} GPUs")
    return settings


def script_text(job: Job, settings: PretrainSettings) -> str:
    """The script of a checked job."""
    return slurm_script(job, settings) if job.slurm else _torchrun_script(job, settings)


def how_to_start(job: Job, script: Path) -> str:
    """What to type to start the script."""
    path = shlex.quote(str(script))
    if job.slurm:
        return f"submit it: sbatch {path}"
    if job.nodes == 1:
        return f"start it: bash {path}"
    return f"on each of the {job.nodes} machines: {HEAD}=FIRST_MACHINE bash {path}"


def _torchrun_script(job: Job, settings: PretrainSettings) -> str:
    name = shlex.quote(Path(settings.out).name or "headwater")
    command = job_command(job, settings, f'"${{{HEAD}:?the name or address of the first machine}}:{job.port}"', name)
    comment = "# Run this on the machine."
    if job.nodes > 1:
        comment = f"# Run this on each of the {job.nodes} machines, with {HEAD} set to the first one's name or address."
        command.insert(3, [ShellText(f'${{{ADDRESS}:+--local-addr "${ADDRESS}"}}')])
    return f"""#!/usr/bin/env bash
{comment}
set -euo pipefail
cd {shlex.quote(os.getcwd())}
{ENVIRONMENT}
exec {script(command)}
"""
