"""`headwater launch`: the script that starts a pretraining run on several machines, for torchrun or for SLURM.

    headwater launch pretrain/llama-8b --nodes 8 --gpus-per-node 8 --slurm --submit out=/scratch/runs/8b

The script meets failures on four levels: torchrun starts failed processes again (`--restarts`); an agent that was
killed may be started again by the same script, and the others wait for it (under SLURM all agents are, as often); SLURM
puts a job whose machine failed back into the queue; and SIGTERM comes early enough before the time limit for a
checkpoint to be saved. The run goes on from its newest whole checkpoint each time.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from headwater.configs import ConfigError, UserError, load_config
from headwater.launch.plan.layouts import PlanSettings, division_problems, vocabulary
from headwater.train.artifacts import require_directory, write_bytes
from headwater.train.settings import PretrainSettings

HEAD, ADDRESS = "HEADWATER_HEAD", "HEADWATER_ADDRESS"
"""Variables of the torchrun script: the first machine's name, and this machine's own address where it must be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A pretraining run and the machines it is started on.

    Attributes:
        config, overrides: as `headwater pretrain` takes them.
        time_limit: SLURM's, as `[D-]HH:MM:SS`.
        notice_minutes: how long before the limit SIGTERM is sent, and how long a checkpoint may take after it.
        restarts: how often torchrun starts failed processes again, and SLURM's script torchrun.
        script: where the script goes; in the run directory if None.
    """

    config: str | None
    overrides: list[str] = field(default_factory=list)
    nodes: int = 1
    gpus_per_node: int = 8
    slurm: bool = False
    time_limit: str = "24:00:00"
    notice_minutes: int = 10
    restarts: int = 3
    port: int = 29400
    partition: str | None = None
    account: str | None = None
    script: Path | None = None


def launch_job(job: Job, *, submit: bool) -> int:
    """Checks the run, writes its script, and with `submit` starts it; returns the exit status.

    Raises:
        UserError: the configuration or its layout on these machines cannot work; nothing is written.
    """
    settings = check(job)
    out = Path(settings.out)
    script = job.script or out / ("launch.sbatch" if job.slurm else "launch.sh")
    (out / "logs").mkdir(parents=True, exist_ok=True)  # SLURM does not make the directory of its output
    write_bytes(script, script_text(job, settings).encode())
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


def limit_seconds(limit: str) -> int:
    """Seconds of SLURM's `[D-]HH:MM:SS`."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", limit)
    if not match:
        raise UserError("--time-limit is not a time", got=limit, expected="[D-]HH:MM:SS, for example 2-00:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def script_text(job: Job, settings: PretrainSettings) -> str:
    """The script of a checked job."""
    return _slurm_script(job, settings) if job.slurm else _torchrun_script(job, settings)


def how_to_start(job: Job, script: Path) -> str:
    """What to type to start the script."""
    path = shlex.quote(str(script))
    if job.slurm:
        return f"submit it: sbatch {path}"
    if job.nodes == 1:
        return f"start it: bash {path}"
    return f"on each of the {job.nodes} machines: {HEAD}=FIRST_MACHINE bash {path}"


def _torchrun(job: Job, settings: PretrainSettings, endpoint: str, identity: str) -> list[str]:
    """Lines of the torchrun command; `endpoint` and `identity` are shell words, everything else is quoted."""
    assert job.config is not None
    logs = Path(settings.out) / "logs"
    # Without this torchrun kills processes 30 s after SIGTERM, in the middle of a large checkpoint.
    shutdown = max(job.notice_minutes * 60 - 30, 30)
    rendezvous = f"--rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id {identity} --rdzv-conf join_timeout=1800"
    if job.nodes == 1:
        rendezvous = "--standalone"  # takes a free port, so that jobs on one machine do not collide
    return [
        f"{shlex.quote(sys.executable)} -m torch.distributed.run",
        f"--nnodes {job.nodes} --nproc-per-node {job.gpus_per_node}",
        rendezvous,
        f"--max-restarts {job.restarts} --shutdown-timeout {shutdown}",
        # Each rank's output goes to its own file; rank 0 of each machine is shown too.
        f"--log-dir {shlex.quote(str(logs))} --redirects 3 --tee 0:3",
        f"-m headwater.train {shlex.join([job.config, *job.overrides])}",
    ]


# With a store shared between rounds, an agent that lives on does not tell one that was started again where to meet
# (torch 2.13): the job would not come back.
_ENVIRONMENT = """export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"""


def _torchrun_script(job: Job, settings: PretrainSettings) -> str:
    name = shlex.quote(Path(settings.out).name or "headwater")
    lines = _torchrun(job, settings, f'"${{{HEAD}:?the name or address of the first machine}}:{job.port}"', name)
    comment = "# Run this on the machine."
    if job.nodes > 1:
        comment = f"# Run this on each of the {job.nodes} machines, with {HEAD} set to the first one's name or address."
        lines.insert(3, f'${{{ADDRESS}:+--local-addr "${ADDRESS}"}}')
    command = " \\\n    ".join(lines)
    return f"""#!/usr/bin/env bash
{comment}
set -euo pipefail
cd {shlex.quote(os.getcwd())}
{_ENVIRONMENT}
exec {command}
"""


def _slurm_script(job: Job, settings: PretrainSettings) -> str:
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
    directives = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    directives += ["#SBATCH --exclusive", "#SBATCH --requeue"]
    command = " \\\n    ".join(_torchrun(job, settings, f'"$head:{job.port}"', '"$SLURM_JOB_ID"'))
    header = "\n".join(directives)
    notice = limit_seconds(job.time_limit) - job.notice_minutes * 60
    return f"""#!/usr/bin/env bash
{header}
set -euo pipefail
cd {shlex.quote(os.getcwd())}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
{_ENVIRONMENT}
attempt=0
until srun --kill-on-bad-exit=1 {command}
do
    status=$?
    # An agent was killed, or torchrun has used up its restarts. After the SIGTERM before the limit all is saved.
    ((attempt++ < {job.restarts} && SECONDS < {notice})) || exit "$status"
done
"""
