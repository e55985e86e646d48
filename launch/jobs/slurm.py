"""Scripts for SLURM."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from headwater.configs import UserError
from headwater.launch.jobs.command import script
from headwater.launch.jobs.job import ENVIRONMENT, Job, job_command
from headwater.train.settings import PretrainSettings


def directives(options: Mapping[str, object]) -> list[str]:
    """A line for each of sbatch's options; those that are None are left out."""
    return [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]


def limit_seconds(limit: str) -> int:
    """Seconds of SLURM's `[D-]HH:MM:SS`."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", limit)
    if not match:
        raise UserError("--time-limit is not a time", got=limit, expected="[D-]HH:MM:SS, for example 2-00:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def slurm_script(job: Job, settings: PretrainSettings) -> str:
    """The script of a pretraining run: torchrun on every machine, started again as often as it may be."""
    logs = Path(settings.out).absolute() / "logs"
    options = {
        "job-name": Path(settings.out).name or "headwater",
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus_per_node,
        "time": job.time_limit,
        # To every process of the job's steps, so that the ranks save and stop; not to this script.
        "signal": f"TERM@{job.notice_minutes * 60}",
        "output": logs / "slurm-%j.out",
        "open-mode": "append",
        "partition": job.partition,
        "account": job.account,
    }
    header = "\n".join([*directives(options), "#SBATCH --exclusive", "#SBATCH --requeue"])
    command = script(job_command(job, settings, f'"$head:{job.port}"', '"$SLURM_JOB_ID"'))
    notice = limit_seconds(job.time_limit) - job.notice_minutes * 60
    return f"""#!/usr/bin/env bash
{header}
set -euo pipefail
cd {shlex.quote(os.getcwd())}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
{ENVIRONMENT}
attempt=0
until srun --kill-on-bad-exit=1 {command}
do
    status=$?
    # An agent was killed, or torchrun has used up its restarts. After the SIGTERM before the limit all is saved.
    ((attempt++ < {job.restarts} && SECONDS < {notice})) || exit "$status"
done
"""


def one_process_script(options: Mapping[str, object], command: list[str]) -> str:
    """The script of one process on one machine."""
    lines = ["#!/usr/bin/env bash", *directives(options), "#SBATCH --requeue"]
    return "\n".join([*lines, f"cd {shlex.quote(os.getcwd())}", shlex.join(command), ""])
