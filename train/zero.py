"""The one place that meets DeepSpeed: how it is started on Megatron's groups, and what of it has no public name.

Whole weights and moments are read through its public `safe_get_*`. The rest it keeps to
itself: the names in `PRIVATE` were read at version `READ_AT`, and `initialize` refuses a version that lacks one, at the
start and not in the middle of a training.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headwater.train import parallel

READ_AT = "0.19.8"
PRIVATE = {
    "DeepSpeedEngine": ("micro_steps",),
    "DeepSpeedZeroOptimizer": (
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "averaged_gradients",
        "check_overflow",
        "optimizer",
        "overflow",
        "reduce_gradients",
    ),
    "DeepSpeedZeroOptimizer_Stage3": ("averaged_gradients", "check_overflow", "optimizer", "overflow"),
    "tensor_fragment": ("get_hp_fragment", "lp_fragment_address"),
}
"""What is read or set of each of DeepSpeed's classes beside its public functions."""

_PIPE_REPLICATED, _WHOLE_SHAPE = "ds_pipe_replicated", "ds_shape"
_PARTITIONED = ("_hp_mapping", "ds_id")
"""Attributes of parameters: a copy of another stage's; the shape that ZeRO-3 takes away; partitioned by ZeRO-1 and 2
(what this rank keeps, None if nothing), or by ZeRO-3 (of `ds_numel` numbers, `ds_tensor` are this rank's)."""


class ModelParallelUnit:
    """What DeepSpeed calls an `mpu`: its questions, answered from Megatron's groups."""

    get_data_parallel_group = staticmethod(parallel.data_group)
    get_data_parallel_rank = staticmethod(lambda: dist.get_rank(parallel.data_group()))
    get_data_parallel_world_size = staticmethod(lambda: dist.get_world_size(parallel.data_group()))
    get_tensor_model_parallel_group = staticmethod(parallel.tensor_group)
    get_tensor_model_parallel_rank = staticmethod(parallel.tensor_rank)
    get_tensor_model_parallel_world_size = staticmethod(parallel.tensor_size)
    get_tensor_model_parallel_src_rank = staticmethod(lambda: dist.get_process_group_ranks(parallel.tensor_group())[0])
    # The group a gradient norm is summed over: every rank that holds a different part of the model.
    get_model_parallel_group = staticmethod(parallel.replica_group)
    get_model_parallel_rank = staticmethod(lambda: dist.get_rank(parallel.replica_group()))
    get_model_parallel_world_size = staticmethod(lambda: dist.get_world_size(parallel.replica_group()))
    get_pipeline_model_parallel_group = staticmethod(parallel.pipeline_group)
    get_pipeline_model_parallel_rank = staticmethod(parallel.pipeline_rank)
    get_pipeline_model_parallel_world_size = staticmethod(lambda: dist.get_world_size(parallel.pipeline_group()))


def initialize(model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine around a model and its optimizer.

    Raises:
        RuntimeError: this version of DeepSpeed lacks a name in `PRIVATE`.
    """
    os.environ.setdefault("LOCAL_RANK", "0")  # a process on its own has no launcher that says so
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # DeepSpeed would compile a shared-memory extension here, for a minute, where gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, mpu=ModelParallelUnit, dist_init_required=False
    )
    mappings = (getattr(parameter, "_hp_mapping", None) for parameter in model.parameters())
    mapping = next((each for each in mappings if each is not None), None)
    for owner in (engine, engine.optimizer, mapping):
        require_names(owner, deepspeed.__version__)
    _look_at_gradients_once(engine.optimizer)
    return engine


def require_names(owner: Any, version: str) -> None:
    """Refuses an object of DeepSpeed that lacks one of the names read of its class."""
    kind = type(owner).__name__
    lacking = [name for name in PRIVATE.get(kind, ()) if not hasattr(owner, name)]
    if lacking:
        raise RuntimeError(
            f"DeepSpeed {version}: {kind} has no {', '.join(lacking)}; Headwater was written for {READ_AT}, "
            "install that version"
        )


def _look_at_gradients_once(optimizer: Any) -> None:
    """ZeRO reads all gradients to see whether each is finite, and then once more for their norm, of which it sees the
    same: where a gradient is not finite the norm is not, on every rank."""
    if not hasattr(optimizer, "check_overflow"):
        return

    def not_yet(*_: Any, **__: Any) -> None:
        optimizer.overflow = False

    optimizer.check_overflow = not_yet


def overflowed(engine: Any) -> bool:
    """Whether the last step was left out because a gradient was not finite."""
    return bool(getattr(engine.optimizer, "overflow", False))


def link_moments(engine: Any) -> None:
    """DeepSpeed links all groups' moments to their parameters after the first group's first update, when the other
    groups have none yet; once all have been updated it is told to link them again."""
    optimizer = engine.optimizer
    if getattr(optimizer, "_hp_optimizer_states_linked", False):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def drop_gradients(engine: Any) -> None:
    """Forgets the gradients of a step that is left out."""
    engine.optimizer.zero_grad(set_to_none=True)
    if hasattr(engine.optimizer, "averaged_gradients"):
        engine.optimizer.averaged_gradients = {}
    # Counts the micro-batch without an update, so the next step starts an accumulation of its own.
    engine.micro_steps += 1


def count_updates(engine: Any, updates: int) -> None:
    """Sets Adam's count of updates, which its bias correction reads."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        if "step" in state:
            state["step"].fill_(updates)


def use_outside(model: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    """Tells ZeRO-3 that the model itself reads a parameter of one of its modules."""
    import deepspeed

    deepspeed.zero.register_external_parameter(model, parameter)


def mark_copy(parameter: torch.nn.Parameter) -> None:
    """Marks a parameter that an earlier pipeline stage holds too, and counts in gradient norms."""
    setattr(parameter, _PIPE_REPLICATED, True)


def is_copy(parameter: torch.nn.Parameter) -> bool:
    return bool(getattr(parameter, _PIPE_REPLICATED, False))


def whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """This rank's tensor-parallel shape of a parameter, which ZeRO-3 empties."""
    return tuple(getattr(parameter, _WHOLE_SHAPE, parameter.shape))


def read_state(engine: Any, parameter: torch.nn.Parameter, moments: tuple[str, ...]) -> dict[str, Tensor]:
    """`weight` and the named moments of a parameter, fp32, in its `whole_shape`. Collective over data parallel."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    weight = safe_get_full_fp32_param(parameter)
    if weight is None:  # nothing is partitioned
        state = engine.optimizer.state[parameter]
        return {"weight": parameter.detach().float(), **{name: state[name] for name in moments if name in state}}
    shape = whole_shape(parameter)
    found = {"weight": weight.detach().view(shape)}
    for name in moments:
        found[name] = safe_get_full_optimizer_state(parameter, name).detach().view(shape)
    return found


def read_moment(engine: Any, parameter: torch.nn.Parameter, name: str) -> Tensor:
    """One moment of a parameter, fp32, in its `whole_shape`, without its weight and the others. Collective over data
    parallel; the moments must exist."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if not any(hasattr(parameter, mark) for mark in _PARTITIONED):
        return engine.optimizer.state[parameter][name]
    return safe_get_full_optimizer_state(parameter, name).detach().view(whole_shape(parameter))


def kept_span(parameter: Any) -> tuple[int, int] | None:
    """Which of a parameter's numbers this rank keeps in fp32, with their moments: (first, how many), counted in its
    `whole_shape` laid flat. None where every rank keeps all of them."""
    if hasattr(parameter, "ds_id"):
        width = parameter.ds_tensor.numel()
        first = min(width * ModelParallelUnit.get_data_parallel_rank(), parameter.ds_numel)
        return first, min(width, parameter.ds_numel - first)
    if hasattr(parameter, "_hp_mapping"):
        address = parameter._hp_mapping and parameter._hp_mapping.lp_fragment_address
        return (address.start, address.numel) if address else (0, 0)
    return None


def write_kept(engine: Any, parameter: Any, state: dict[str, Tensor]) -> None:
    """Puts weight and moments in their place: of the numbers of `kept_span`, flat fp32, or of all of them where nothing
    is partitioned. The moments must exist. The numbers that the forward pass reads are left alone."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    moments = {name: value for name, value in state.items() if name != "weight"}
    if hasattr(parameter, "ds_id"):
        width = parameter.ds_tensor.numel()  # of the last part, padding is kept too
        padded = {name: torch.nn.functional.pad(value, (0, width - len(value))) for name, value in state.items()}
        safe_set_local_fp32_param(parameter, padded["weight"])
        for name in moments:
            safe_set_local_optimizer_state(parameter, padded[name], name)
    elif not hasattr(parameter, "_hp_mapping"):
        parameter.data.copy_(state["weight"].view(parameter.shape))
        for name, value in moments.items():
            engine.optimizer.state[parameter][name].copy_(value.view(parameter.shape))
    elif parameter._hp_mapping is not None:
        parameter._hp_mapping.get_hp_fragment().copy_(state["weight"])
        for name, value in moments.items():
            parameter._hp_mapping.get_hp_fragment(name).copy_(value)
