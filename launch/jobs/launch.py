"""`headwater launch`: the script that starts a stage on a cluster's machines, for torchrun or for SLURM.

    headwater launch pretrain/llama-8b --nodes 8 --gpus-per-node 8 --slurm --submit out=/scratch/runs/8b
    headwater launch index index/run model.run=/scratch/runs/8b --nodes 2 --slurm

The script meets failures on four levels: torchrun starts failed processes again (`--restarts`); an agent that was
killed may be started again by the same script, and the others wait for it (under SLURM all agents are, as often); SLURM
puts a job whose machine failed back into the queue; and SIGTERM comes early enough before the time limit for a
checkpoint to be saved, from which the job goes on (`--chain`: by itself). What a person must mend is not tried again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.configs import ConfigError, UserError
from headwater.launch.jobs.command import ShellText, script, torchrun
from headwater.launch.jobs.job import Job, one_of
from headwater.launch.jobs.slurm import (
    ENVIRONMENT,
    MEETING_PORT,
    beginning,
    header,
    in_container,
    require_notice,
    work_body,
)
from headwater.launch.jobs.stages import STAGES, Stage, require_inputs, work_place
from headwater.launch.machines.estimates import GPUS
from headwater.launch.machines.layouts import PlanSettings, division_problems, layout_problems, vocabulary
from headwater.train.artifacts import require_directory, write_bytes

HEAD, ADDRESS = "HEADWATER_HEAD", "HEADWATER_ADDRESS"
"""Variables of the torchrun script: the first machine's name, and this machine's own address where it must be told."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A job whose settings have been read and found to be possible.

    Attributes:
        place: the directory for its script and logs.
        processes: on each machine.
    """

    job: Job
    stage: Stage
    place: Path
    processes: int

    @property
    def script(self) -> Path:
        return self.job.script or self.place / ("launch.sbatch" if self.job.slurm else "launch.sh")

    @property
    def logs(self) -> Path:
        return self.place / "logs"


def launch_job(job: Job, *, submit: bool) -> int:
    """Checks the job, writes its script, and with `submit` starts it; returns the exit status.

    Raises:
        UserError: what it needs is missing, or its layout on these machines cannot work; nothing is written.
    """
    checked = check(job)
    path = checked.script
    write_bytes(path, script_text(checked).encode())
    checked.logs.mkdir(parents=True, exist_ok=True)  # SLURM does not make the directory of its output
    path.chmod(0o755)
    print(f"wrote {path}")
    if not submit:
        print(how_to_start(job, path))
        return 0
    environment = dict(os.environ)
    if not job.slurm and job.nodes > 1:
        environment.setdefault(HEAD, os.uname().nodename)
        print(f"on each of the other {job.nodes - 1} machines: {HEAD}={environment[HEAD]} bash {path}", flush=True)
    return start(["sbatch" if job.slurm else "bash", str(path)], environment)


def start(command: list[str], environment: dict[str, str] | None = None) -> int:
    """Submits or runs a script; returns the exit status."""
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not on this machine", fix=f"submit it where SLURM is: sbatch {command[-1]}"
        ) from None


def check(job: Job) -> Checked:
    """The job, checked against its machines, with what it needs there.

    Raises:
        UserError: it cannot work.
    """
    stage = STAGES[job.stage]
    if job.config is None and stage.preset is None and not job.overrides:
        raise UserError("launch needs a configuration", expected="a YAML file or a preset as the first argument")
    if job.config is None and stage.module is not None:
        raise UserError(f"{job.stage} in several processes needs a configuration", expected="a YAML file or a preset")
    settings = stage.load(job.config, job.overrides)
    place = work_place(job.stage, stage, settings)
    require_directory(place)
    if job.slurm:
        require_notice(job.time_limit, job.notice_minutes)
    require_sense(job, stage)
    processes = job.gpus_per_node or (8 if stage.module is not None else 1)
    if job.stage == "pretrain":
        require_layout(job, settings, processes)
    if "dependency" not in job.cluster.options:  # another job may make what is not there yet
        require_inputs(stage, settings)
    return Checked(job, stage, place, processes)


def require_sense(job: Job, stage: Stage) -> None:
    """Refuses options that the stage, or a script without SLURM, knows nothing of."""
    if stage.module is None and job.nodes > 1:
        raise UserError(f"{job.stage} runs on one machine", got=f"--nodes {job.nodes}", fix="leave out --nodes")
    if job.chain and not (job.slurm and (job.stage == "pretrain" or stage.position)):
        raise UserError(
            f"--chain of {job.stage}" + ("" if job.slurm else " without --slurm"),
            expected="a pretraining or an index under SLURM, which go on where they were told to stop",
            fix="leave out --chain, and submit the script again",
        )
    if job.cluster.image and not job.slurm and not job.cluster.image.endswith(".sif"):
        raise UserError(
            "--container-image without --slurm", got=job.cluster.image, expected="a .sif file, which Apptainer runs"
        )


def require_layout(job: Job, settings: Any, processes: int) -> None:
    """Refuses a layout that does not divide, or that fits no GPU (`--gpu`: not this kind).

    Raises:
        ConfigError: with every problem.
    """
    roomy = max(GPUS, key=lambda name: GPUS[name].memory)
    if job.gpu is not None:
        one_of("--gpu", job.gpu, list(GPUS))
    machines = PlanSettings(gpus=job.nodes * processes, gpus_per_node=processes, gpu=job.gpu or roomy)
    rows = vocabulary(settings)
    judge = division_problems if job.cluster.gpu_request == "none" else layout_problems
    problems = list(judge(settings, machines, rows))
    if problems:
        kind = f"{job.gpu or f'of the largest kind, {roomy},'} " if judge is layout_problems else ""
        raise ConfigError(problems, f"{job.config} on {job.nodes} x {processes} GPUs {kind}".rstrip(" ,"))


def script_text(checked: Checked) -> str:
    """The script of a checked job."""
    return slurm_script(checked) if checked.job.slurm else _torchrun_script(checked)


def how_to_start(job: Job, script: Path) -> str:
    """What to type to start the script."""
    path = shlex.quote(str(script))
    if job.slurm:
        return f"submit it: sbatch {path}"
    if job.nodes == 1:
        return f"start it: bash {path}"
    return f"on each of the {job.nodes} machines: {HEAD}=FIRST_MACHINE bash {path}"


def job_command(checked: Checked, endpoint: str, identity: str, python: str) -> list[list[str]]:
    """The command of a machine; `endpoint` and `identity` are text for the shell, everything else is quoted."""
    job = checked.job
    arguments = [*([job.config] if job.config else []), *job.overrides]
    if checked.stage.module is None:
        return [[python, "-m", "headwater.launch", *job.stage.split(), *arguments]]
    if job.slurm and job.nodes == checked.processes == 1:  # SLURM's script starts it again
        return [[python, "-m", checked.stage.module, *arguments]]
    # Without this torchrun kills processes 30 s after SIGTERM, in the middle of a large checkpoint.
    shutdown = max(job.notice_minutes * 60 - 30, 30)
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", ShellText(endpoint), "--rdzv-id", ShellText(identity)]
    return torchrun(
        checked.stage.module,
        arguments,
        processes=checked.processes,
        nodes=job.nodes,
        meeting=[*meeting, "--rdzv-conf", "join_timeout=1800"],
        options=[
            ["--max-restarts", str(job.restarts), "--shutdown-timeout", str(shutdown)],
            # Each rank's output goes to its own file; rank 0 of each machine is shown too.
            ["--log-dir", str(checked.logs), "--redirects", "3", "--tee", "0:3"],
        ],
        python=python,
    )


def slurm_script(checked: Checked) -> str:
    """The sbatch script: torchrun on every machine (or one process), started again as often as it may be."""
    job, cluster = checked.job, checked.job.cluster
    lines = header(
        cluster,
        name=checked.place.name or "headwater",
        nodes=job.nodes,
        gpus=checked.processes,
        time_limit=job.time_limit,
        output=f"{checked.logs.absolute()}/slurm-%j.out",
        # To every process of the job's steps, so that the ranks save and stop; not to this script.
        signal=f"TERM@{job.notice_minutes * 60}",
    )
    body = work_body(
        cluster,
        nodes=job.nodes,
        place=checked.place,
        restarts=job.restarts,
        script=checked.script,
        command=lambda endpoint, identity, python: job_command(checked, endpoint, identity, python),
        port=job.port,
        chain=job.chain,
        position=checked.stage.position(shlex.quote(str(checked.place))) if checked.stage.position else None,
    )
    return f"#!/usr/bin/env bash\n{lines}\n{beginning(cluster)}\n{body}"


def _torchrun_script(checked: Checked) -> str:
    job = checked.job
    name = shlex.quote(checked.place.name or "headwater")
    _, before, python = in_container(job.cluster, [checked.place])
    endpoint = f'"${{{HEAD}:?the name or address of the first machine}}:{job.port or MEETING_PORT}"'
    command = job_command(checked, endpoint, name, python)
    comment = "# Run this on the machine."
    if job.nodes > 1:
        comment = f"# Run this on each of the {job.nodes} machines, with {HEAD} set to the first one's name or address."
        command.insert(3, [ShellText(f'${{{ADDRESS}:+--local-addr "${ADDRESS}"}}')])
    prologue = job.cluster.prologue.rstrip("\n")
    return f"""#!/usr/bin/env bash
{comment}
set -eo pipefail
cd {shlex.quote(os.getcwd())}
{prologue + chr(10) if prologue else ""}set -u
{ENVIRONMENT}
exec {script([before, *command] if before else command)}
"""
