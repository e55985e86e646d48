"""Process groups: torch.distributed underneath, Megatron's tensor, pipeline and data parallel groups on top. The one
place that asks Megatron's `parallel_state`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from headwater.configs.errors import UserError, refusals
from headwater.train.compat import functions_left_plain
from headwater.train.gloo import share_devices

with functions_left_plain():
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random as megatron_random

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """Where this process stands."""

    rank: int
    size: int
    local_rank: int
    tensor: int
    pipeline: int
    device: torch.device

    @property
    def data(self) -> int:
        """Data-parallel replicas of the model."""
        return self.size // (self.tensor * self.pipeline)

    @property
    def data_rank(self) -> int:
        return parallel_state.get_data_parallel_rank()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def first_stage(self) -> bool:
        return parallel_state.is_pipeline_first_stage()

    @property
    def last_stage(self) -> bool:
        return parallel_state.is_pipeline_last_stage()


def start(*, tensor: int = 1, pipeline: int = 1, threads: int = 0, timeout_s: float = 1800) -> World:
    """Joins the job (torchrun's environment, or a world of one) and makes the parallel groups.

    Raises:
        UserError: the world size is not a multiple of tensor x pipeline, no process has joined then; or groups that
            somebody else has made carry a GPU's tensors alone.
    """
    require_divisible(tensor, pipeline)
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if not dist.is_initialized():
        alone: dict[str, Any] = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        share_devices()
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), **alone)
    elif "cpu" not in dist.get_backend_config():
        raise UserError(
            "the process groups of this job carry no tensors of the CPU",
            got=dist.get_backend_config(),
            expected="cpu:gloo,cuda:nccl",
            fix='start them so: torch.distributed.init_process_group("cpu:gloo,cuda:nccl")',
        )
    if cuda:
        torch.cuda.set_device(local_rank)
    else:
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        # torchrun sets the variable to 1 for several processes, whatever the machine has.
        asked = int(os.environ.get("OMP_NUM_THREADS") or 0) if local_world == 1 else 0
        torch.set_num_threads(threads or asked or max(1, len(os.sched_getaffinity(0)) // local_world))
    size = dist.get_world_size()
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline)
    # Dropout is 0, so the tracker never draws: this public variant needs no CUDA generator.
    megatron_random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    global _joined, _patient
    _patient = None
    _joined = World(dist.get_rank(), size, local_rank, tensor, pipeline, device)
    return _joined


_joined: World | None = None


def joined() -> World | None:
    """The job that this process has joined, None before `start` and after `stop`."""
    return _joined


def require_launcher() -> None:
    """Refuses a process that srun has started as one of several which do not know of each other: each would be a world
    of its own, in one directory.

    Raises:
        UserError: said by the first of them.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if "RANK" in os.environ or tasks < 2:
        return
    error = UserError(
        f"srun has started {tasks} processes that do not know of each other",
        expected="one process, or processes that torchrun has started",
        fix="let `headwater launch` write the script (--slurm), or start a torchrun on each machine: srun torchrun ...",
    )
    error.is_said = os.environ.get("SLURM_PROCID", "0") != "0"  # type: ignore[attr-defined]
    raise error


def require_divisible(tensor: int, pipeline: int) -> None:
    size = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))
    if size % (tensor * pipeline):
        raise said_by_main(
            UserError(
                f"{size} {'processes' if size > 1 else 'process'} cannot be shared out"
                f" as parallel.tensor {tensor} x parallel.pipeline {pipeline}",
                got=f"{size} processes",
                expected=f"a multiple of {tensor * pipeline}",
                fix=f"start {tensor * pipeline} (`headwater pretrain --nproc {tensor * pipeline}`, or torchrun), or"
                " change parallel.tensor and parallel.pipeline",
            )
        )


def said_by_main(error: UserError) -> UserError:
    """Marks an error that every rank raises alike: rank 0 prints it, the others end without a word."""
    error.is_said = int(os.environ.get("RANK", 0)) != 0  # type: ignore[attr-defined]
    return error


def stop() -> None:
    """Leaves the job; safe to call when it was never joined."""
    global _joined, _patient
    _joined = _patient = None
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def tensor_rank() -> int:
    """This process's place among those that share each layer's matrices."""
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    return parallel_state.get_tensor_model_parallel_world_size()


def tensor_group() -> dist.ProcessGroup:
    return parallel_state.get_tensor_model_parallel_group()


def pipeline_rank() -> int:
    """This process's stage."""
    return parallel_state.get_pipeline_model_parallel_rank()


def pipeline_group() -> dist.ProcessGroup:
    return parallel_state.get_pipeline_model_parallel_group()


def last_stage_rank() -> int:
    """The rank, in the whole job, of this pipeline's last stage."""
    return parallel_state.get_pipeline_model_parallel_last_rank()


def data_group() -> dist.ProcessGroup:
    """The processes that hold the same part of the model and see other rows."""
    return parallel_state.get_data_parallel_group()


def replica_group() -> dist.ProcessGroup:
    """The processes that together hold one replica of the model: its tensor-parallel ranks on every stage."""
    return parallel_state.get_model_parallel_group()


def embedding_group() -> dist.ProcessGroup:
    """The first and the last stage, which share a tied embedding."""
    return parallel_state.get_embedding_group()


def any_rank(flag: bool) -> bool:
    """Whether the flag is raised on any rank: how all ranks agree to stop."""
    if dist.get_world_size() == 1:
        return flag
    vote = torch.tensor([float(flag)])
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())


def agree(world: World, error: BaseException | None) -> None:
    """Where every rank has done its own part of something: raises on all ranks what the first of them met with that
    failed. No rank is left waiting for one that has gone, and the error is said once.

    Raises:
        the error; one that a user can mend names its rank and machine.
    """
    met: list[BaseException | None] = [error]
    if world.size > 1:
        told: BaseException | None = error
        if isinstance(error, UserError):
            where = f"{error.what} (rank {world.rank} on {platform.node()})"
            error = told = UserError(where, got=error.got, expected=error.expected, fix=error.fix)
        elif error is not None:
            told = RuntimeError(f"rank {world.rank} on {platform.node()} failed: {error!r}")
        met = [None] * world.size
        dist.all_gather_object(met, told)
        met[world.rank] = error
    first = next((each for each in met if each is not None), None)
    if first is not None:
        raise said_by_main(first) if isinstance(first, UserError) else first


def attempt(action: Callable[[], Any]) -> BaseException | None:
    """Does something; returns what it raises, for `agree`."""
    try:
        with refusals():
            action()
    except Exception as error:
        return error
    return None


def patient_group() -> dist.ProcessGroup:
    """All processes, to wait for one of them that works alone: a corpus of a terabyte takes longer to build than a
    collective may, and one that dies is noticed at once all the same. Called by all of them."""
    global _patient
    if _patient is None:
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _patient


PATIENCE = timedelta(days=30)
"""Longer than any job."""

_patient: dist.ProcessGroup | None = None


def on_main(world: World, action: Callable[[], Any]) -> None:
    """Runs something on rank 0 while the others wait, for as long as it takes; an error is raised on all."""

    def without_result() -> None:
        action()

    from_main(world, without_result)


def from_main(world: World, action: Callable[[], T]) -> T:
    """Runs something on rank 0, for as long as it takes; returns what it returns, something small, on all ranks, where
    an error is raised too."""
    outcome: list[Any] = [None, None]
    if world.is_main:
        try:
            with refusals():
                outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    if world.size > 1:
        dist.broadcast_object_list(outcome, src=0, group=patient_group())
    result, problem = outcome
    if problem is not None:
        raise said_by_main(problem) if isinstance(problem, UserError) else problem
    return result
