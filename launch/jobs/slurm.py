"""Scripts for SLURM: what they ask for, and how they go on after failures, at a time limit, and after a mistake."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from headwater.configs import UserError
from headwater.launch.jobs.command import script as as_script
from headwater.launch.jobs.job import Cluster

# With a store shared between rounds, an agent that lives on does not tell one that was started again where to meet
# (torch 2.13): the job would not come back.
ENVIRONMENT = "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
"""Lines of a script before the command."""

MEETING_PORT = 29400

MOST_NOTICE = 65535
"""Seconds that SLURM can send a signal ahead."""


def limit_seconds(limit: str) -> int:
    """Seconds of SLURM's `[D-]HH:MM:SS`."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", limit)
    if not match:
        raise UserError("--time-limit is not a time", got=limit, expected="[D-]HH:MM:SS, for example 2-00:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def require_notice(time_limit: str, notice_minutes: int) -> None:
    """Refuses times that leave a job nothing."""
    if limit_seconds(time_limit) <= notice_minutes * 60 or notice_minutes * 60 > MOST_NOTICE:
        raise UserError(
            "--notice is not shorter than --time-limit" if notice_minutes * 60 <= MOST_NOTICE else "--notice is long",
            got=f"{notice_minutes} min, {time_limit}",
            expected=f"minutes before the limit that leave the run some time, at most {MOST_NOTICE // 60}",
            fix="raise --time-limit, or lower --notice",
        )


def read_options(given: list[str]) -> dict[str, str | None]:
    """sbatch's options from `key=value` and `key`.

    Raises:
        UserError: one is neither.
    """
    options: dict[str, str | None] = {}
    for text in given:
        name, equals, value = text.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", name) or "\n" in value:
            raise UserError(
                "--sbatch is not one of sbatch's options",
                got=text,
                expected="KEY=VALUE or KEY, for example qos=high or overcommit",
            )
        options[name] = value if equals else None
    return options


def header(cluster: Cluster, *, name: str, nodes: int, gpus: int, time_limit: str, output: str, **more: object) -> str:
    """The lines that sbatch reads.

    Args:
        gpus: of each machine.
        more: further options, with underscores; those that are None are left out.
    """
    options: dict[str, object] = {
        "job-name": name,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus if cluster.gpu_request == "gpus" else None,
        "gres": f"gpu:{gpus}" if cluster.gpu_request == "gres" else None,
        "cpus-per-task": cluster.cpus_per_task,
        "mem": cluster.memory,
        "time": time_limit,
        "output": output,
        "open-mode": "append",
        "partition": cluster.partition,
        "account": cluster.account,
        **{key.replace("_", "-"): value for key, value in more.items()},
    }
    options = {key: value for key, value in options.items() if value is not None and key not in cluster.options}
    flags: list[str] = ["exclusive"] * (cluster.exclusive and "exclusive" not in cluster.options) + ["requeue"]
    options |= {**dict.fromkeys(flags), **cluster.options}
    return "\n".join(
        f"#SBATCH --{key}" + ("" if value is None else f"={shlex.quote(str(value))}") for key, value in options.items()
    )


def in_container(cluster: Cluster, directories: list[Path]) -> tuple[list[str], list[str], str]:
    """Options of srun, words before the command, and the Python of it.

    Args:
        directories: that the processes must see under the same names.
    """
    if cluster.image is None:
        return [], [], sys.executable
    seen = dict.fromkeys(str(path.absolute()) for path in (Path.cwd(), *directories))
    mounts = [*(f"{path}:{path}" for path in seen), *cluster.mounts]
    if cluster.image.endswith(".sif"):
        gpus = [] if cluster.gpu_request == "none" else ["--nv"]
        bound = [word for mount in mounts for word in ("--bind", mount)]
        return [], ["apptainer", "exec", *gpus, "--pwd", os.getcwd(), *bound, cluster.image], "python"
    return (
        [
            f"--container-image={cluster.image}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={os.getcwd()}",
        ],
        [],
        "python",
    )


def beginning(cluster: Cluster) -> str:
    """What a script does before its work; a line of the prologue that fails ends it."""
    lines = ["set -eo pipefail", f"cd {shlex.quote(os.getcwd())}", *cluster.prologue.rstrip("\n").splitlines()]
    return "\n".join([*lines, "set +e -u", ENVIRONMENT])


def work_body(
    cluster: Cluster,
    *,
    nodes: int,
    place: Path,
    restarts: int,
    script: Path,
    command: Callable[[str, str, str], list[list[str]]],
    port: int | None = None,
    chain: bool = False,
    position: str | None = None,
    is_task: bool = False,
) -> str:
    """What a script does after its beginning: a command on every machine, and the judgement of how it ended.

    Args:
        place: the directory that the work is done in.
        command: of the place where several machines meet, the name of the meeting, and Python.
        port: of the meeting; jobs that share a machine take different ones if None.
        restarts, chain, position: as of `work_loop`.
        script: that these lines stand in.
        is_task: the script is of an array, and this is what one of its tasks does.
    """
    options, before, python = in_container(cluster, [place])
    where = str(port) if port else f"$(({MEETING_PORT} + SLURM_JOB_ID % 1000))"
    cores = [f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else []
    words = ["srun", "--kill-on-bad-exit=1", *cores, *options, *before]
    srun = as_script([words, *command(f'"$head:{where}"', '"$SLURM_JOB_ID"', python)])
    logs = place.absolute() / "logs"
    task = '--array="$SLURM_ARRAY_TASK_ID" ' if is_task else ""
    submit = f"sbatch {task}{shlex.quote(str(script.absolute()))}"
    loop = work_loop(srun, logs=logs, restarts=restarts, submit=submit, chain=chain, position=position)
    head = 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n' if nodes > 1 else ""
    return head + loop


def work_loop(srun: str, *, logs: Path, restarts: int, submit: str, chain: bool, position: str | None) -> str:
    """The lines that run a job's work and judge how it ended.

    Args:
        srun: the command.
        restarts: how often it is started again after a failure.
        submit: the command that submits the script in which these lines stand, which a chain does again.
        position: shell text that prints how far the work is; None: the work notes it itself.
    """
    told = f"at=$({position})" if position else "at=${ended#stopped}; at=${at# }; at=${at:-nothing done yet}"
    shown = submit.replace('"', "")
    past = shlex.quote(str(logs / "chain"))
    again = f"""
    if [[ "$at" == "$(tail -n 1 {past} 2>/dev/null | cut -d ' ' -f 3-)" ]]; then
        say "no further than the job before it ($at): not submitted again"
        exit 1
    fi
    echo "$SLURM_JOB_ID $SECONDS $at" >>{past}
    next=$({submit.replace("sbatch", "sbatch --parsable", 1)}) || {{
        say "could not submit itself again; from where you may: {shown}"
        exit 1
    }}
    say "goes on in job $next"
    exit 0"""
    once = f"""
    say "to go on: {shown}"
    exit 143"""
    return f"""\
mkdir -p {shlex.quote(str(logs))}
export HEADWATER_ENDED={shlex.quote(str(logs))}/ended-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}
say() {{ echo "job $SLURM_JOB_ID: $1"; }}

stopped() {{
    {told}
    say "told to stop, and saved: $at"{again if chain else once}
}}

attempt=0
while true; do
    rm -f "$HEADWATER_ENDED"
    {srun}
    status=$?
    ended=$(cat "$HEADWATER_ENDED" 2>/dev/null)
    case "$ended:$status" in
    finished*) break ;; # srun ends with 0, and nothing is said, when a machine fails
    stopped* | :130 | :143) stopped ;;
    refused* | *:2)
        say "what is wrong must be mended (see above): not tried again"
        exit 2
        ;;
    esac
    # An agent was killed, or torchrun has used up its restarts.
    if ((attempt++ >= {restarts})); then
        say "given up after status $status and {restarts} restarts"
        exit $((status ? status : 1))
    fi
    say "status $status, started again ($attempt of {restarts})"
done

say "finished: ${{ended#finished }}"
if [[ -f {past} ]]; then
    while read -r job seconds at; do say "  job $job came to $at in $seconds s"; done <{past}
    say "  job $SLURM_JOB_ID came to the end in $SECONDS s"
    rm -f {past}
fi
rm -f "$HEADWATER_ENDED"
"""
