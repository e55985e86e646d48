"""Adam's second moments from a saved optimizer state."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headwater.attribution.models.base import EPS
from headwater.attribution.models.weights import first_line
from headwater.configs.errors import CorruptError, MismatchError, MissingError

_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names that transformers' Trainer puts into its second group, without weight decay."""


def read_moments(path: str, model: nn.Module) -> dict[str, Tensor]:
    """Second moments by parameter name from a saved torch optimizer state (`torch.save(optimizer.state_dict(), path)`).

    The state numbers parameters in the order of the optimizer's groups. Their names are taken from `param_names` where
    the state has them; else one group is in the order of `model.named_parameters()`, and two are those of transformers'
    Trainer, with weight decay and without. Every shape is checked.

    Raises:
        MissingError, CorruptError, MismatchError: when it is not there, not readable without executing code, or
            another model's.
    """
    state = _load(path)
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = state["param_groups"]
    moments = {}
    for group, names in zip(groups, names_of_groups(path, groups, model), strict=True):
        for number, name in zip(group["params"], names, strict=True):
            entry = state["state"].get(number, {})
            moment = entry.get("exp_avg_sq")
            if moment is None:
                raise MismatchError(f"{path} has no second moment of {name}", expected="an Adam or AdamW state")
            if name not in parameters or moment.shape != parameters[name].shape:
                expected = tuple(parameters[name].shape) if name in parameters else "a parameter of the model"
                raise MismatchError(
                    f"{path} belongs to another model: {name}", got=tuple(moment.shape), expected=expected
                )
            steps = float(entry.get("step", 0))
            if steps < 1:
                raise MismatchError(f"{path}: no step was made", got=steps, expected="at least 1")
            moments[name] = moment.float() / (1 - group["betas"][1] ** steps)
    return moments


def read_eps(path: str) -> float:
    """The epsilon that a saved Adam adds to the roots of its second moments; torch's own where it says none.

    Raises:
        MissingError, CorruptError: it is not there, or not readable without executing code.
        MismatchError: its groups of parameters have different ones.
    """
    found = {float(group.get("eps", EPS)) for group in _load(path)["param_groups"]} or {EPS}
    if len(found) > 1:
        raise MismatchError(f"{path} has groups with different eps", got=sorted(found), expected="one for all")
    return found.pop()


def _load(path: str) -> dict[str, Any]:
    if not path or not Path(path).is_file():
        raise MissingError(f"optimizer state {path or '(none given)'} is missing", fix="set model.optimizer_state")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes from the wild: torch raises whatever it meets
        raise CorruptError(
            f"{path} is not a torch optimizer state", got=first_line(error), fix="save optimizer.state_dict()"
        ) from None
    if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
        raise MismatchError(f"{path} is not an optimizer state", expected="a dict with state and param_groups")
    return state


def names_of_groups(path: str, groups: list[dict[str, Any]], model: nn.Module) -> list[list[str]]:
    """The parameters' names, group by group.

    Raises:
        MismatchError: nothing says which parameter is which.
    """
    if all(len(group.get("param_names", [])) == len(group["params"]) for group in groups):
        return [list(group["param_names"]) for group in groups]
    every = list(dict(model.named_parameters()))
    counts = [len(group["params"]) for group in groups]
    adapters = [name for name in every if ".lora_" in name]
    for names in ([every], trainer_groups(model), *([[adapters], [adapters, []]] if adapters else [])):
        if [len(part) for part in names] == counts:
            return names
    raise MismatchError(
        f"{path} belongs to another model, or its groups are not known",
        got=f"{sum(counts)} parameters in {len(counts)} groups of {', '.join(map(str, counts))}",
        expected=f"{len(every)} in one group, or in the two of transformers' Trainer",
        fix="give the optimizer model.named_parameters(), so that it saves param_names",
    )


def trainer_groups(model: nn.Module) -> list[list[str]]:
    """The two groups of transformers' Trainer: what is decayed (no bias, no norm), and the rest."""
    normed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    every = [name for name, _ in model.named_parameters()]
    decayed = [name for name in every if name not in normed and not not_decayed(name)]
    return [decayed, [name for name in every if name not in set(decayed)]]


def not_decayed(name: str) -> bool:
    """Whether the Trainer keeps weight decay off a parameter, by its name or that of any module that holds it."""
    return bool(_NOT_DECAYED.search(name.lower()))
