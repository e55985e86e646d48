"""A stage of the pipeline and the machines that it is started on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headwater.configs.errors import MissingError, UserError

GPU_REQUESTS = ("gpus", "gres", "none")
"""How a job asks for GPUs: --gpus-per-node, --gres=gpu:N, or not at all (machines without any)."""


def one_of(option: str, given: str, allowed: Sequence[str]) -> str:
    """What was given, if it is allowed.

    Raises:
        UserError: it is not.
    """
    if given not in allowed:
        raise UserError(f"{option} is not known", got=given, expected=" or ".join(allowed))
    return given


def read_prologue(path: Path | None) -> str:
    """The lines of a file.

    Raises:
        MissingError: it is not there.
    """
    if path is None:
        return ""
    if not path.is_file():
        raise MissingError(f"the prologue {path} is missing", expected="a file of shell lines")
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a cluster wants to be told beside the machines, and what a job does there before its work.

    Attributes:
        options: any of sbatch's, by name; they take the place of ours, and None is an option without a value.
        gpu_request: of `GPU_REQUESTS`.
        exclusive: the job shares its machines with no other.
        cpus_per_task, memory: of a machine; as the cluster has it if None.
        prologue: lines of a shell before the work (modules, an environment, NCCL's variables).
        image: what the processes run in: a .sif file by Apptainer, anything else by SLURM's pyxis.
        mounts: directories that the image is given, `FROM:TO`, beside the working and the run directory.
    """

    partition: str | None = None
    account: str | None = None
    options: Mapping[str, str | None] = field(default_factory=dict)
    gpu_request: str = "gpus"
    exclusive: bool = True
    cpus_per_task: int | None = None
    memory: str | None = None
    prologue: str = ""
    image: str | None = None
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A stage and the machines it is started on.

    Attributes:
        stage: of `headwater.launch.jobs.stages`.
        config, overrides: as the stage's command takes them.
        gpu: the kind that the layout is held against; any that is known if None.
        time_limit: SLURM's, as `[D-]HH:MM:SS`.
        notice_minutes: how long before the limit SIGTERM is sent, and how long a checkpoint may take after it.
        chain: a job that was told to stop submits itself again, until the work is done.
        restarts: how often torchrun starts failed processes again, and SLURM's script torchrun.
        port: of the meeting of several machines; SLURM's jobs each take one of their own if None.
        script: where the script goes; in the stage's directory if None.
    """

    stage: str = "pretrain"
    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    nodes: int = 1
    gpus_per_node: int | None = None
    gpu: str | None = None
    slurm: bool = False
    cluster: Cluster = Cluster()
    time_limit: str = "24:00:00"
    notice_minutes: int = 10
    chain: bool = False
    restarts: int = 3
    port: int | None = None
    script: Path | None = None
