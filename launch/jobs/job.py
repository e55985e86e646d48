"""A pretraining run and the machines it is started on, and the command that each of them runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from headwater.launch.jobs.command import ShellText, torchrun
from headwater.train.settings import PretrainSettings

# With a store shared between rounds, an agent that lives on does not tell one that was started again where to meet
# (torch 2.13): the job would not come back.
ENVIRONMENT = "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
"""Lines of a script before the command."""


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


def job_command(job: Job, settings: PretrainSettings, endpoint: str, identity: str) -> list[list[str]]:
    """The command of a machine; `endpoint` and `identity` are text for the shell, everything else is quoted."""
    assert job.config is not None
    # Without this torchrun kills processes 30 s after SIGTERM, in the middle of a large checkpoint.
    shutdown = max(job.notice_minutes * 60 - 30, 30)
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", ShellText(endpoint), "--rdzv-id", ShellText(identity)]
    return torchrun(
        "headwater.train",
        [job.config, *job.overrides],
        processes=job.gpus_per_node,
        nodes=job.nodes,
        meeting=[*meeting, "--rdzv-conf", "join_timeout=1800"],
        options=[
            ["--max-restarts", str(job.restarts), "--shutdown-timeout", str(shutdown)],
            # Each rank's output goes to its own file; rank 0 of each machine is shown too.
            ["--log-dir", str(Path(settings.out) / "logs"), "--redirects", "3", "--tee", "0:3"],
        ],
    )
