"""Adam's second moments from a saved optimizer state."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from headwater.configs.errors import CorruptError, MismatchError, MissingError


def read_moments(path: str, model: nn.Module) -> dict[str, Tensor]:
    """Second moments by parameter name from a saved torch optimizer state (`torch.save(optimizer.state_dict(), path)`).

    The state numbers parameters in the order of the optimizer's groups; their names are taken from `param_names` where
    the state has them, else from `model.named_parameters()`. Every shape is checked.

    Raises:
        MissingError, CorruptError, MismatchError: when it is not there, not readable without executing code, or
            another model's.
    """
    if not path or not Path(path).is_file():
        raise MissingError(f"optimizer state {path or '(none given)'} is missing", fix="set model.optimizer_state")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CorruptError(
            f"{path} is not a torch optimizer state", got=str(error).splitlines()[0], fix="save optimizer.state_dict()"
        ) from None
    if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
        raise MismatchError(f"{path} is not an optimizer state", expected="a dict with state and param_groups")
    parameters = dict(model.named_parameters())
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    named = [name for group in state["param_groups"] for name in group.get("param_names", [])]
    names = named if len(named) == len(numbers) else list(parameters)
    if len(names) != len(numbers):
        raise MismatchError(
            f"{path} belongs to another model", got=f"{len(numbers)} parameters", expected=f"{len(names)}"
        )
    moments = {}
    for number, name in zip(numbers, names, strict=True):
        moment = state["state"].get(number, {}).get("exp_avg_sq")
        if moment is None:
            raise MismatchError(f"{path} has no second moment of {name}", expected="an Adam or AdamW state")
        if name not in parameters or moment.shape != parameters[name].shape:
            expected = tuple(parameters[name].shape) if name in parameters else "a parameter of the model"
            raise MismatchError(f"{path} belongs to another model: {name}", got=tuple(moment.shape), expected=expected)
        group = next(group for group in state["param_groups"] if number in group["params"])
        steps = float(state["state"][number].get("step", 0))
        if steps < 1:
            raise MismatchError(f"{path}: no step was made", got=steps, expected="at least 1")
        moments[name] = moment.float() / (1 - group["betas"][1] ** steps)
    return moments
