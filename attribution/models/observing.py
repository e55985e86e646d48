"""One forward pass over a short batch, and what a model did in it: its parts are found without knowing its family."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headwater.attribution.models.products import Product, Products
from headwater.configs.errors import UserError


@dataclass(slots=True)
class Observed:
    """What was seen.

    Attributes:
        base: the part that makes hidden states: the outermost module below the model that holds the embedding and is
            called once.
        output: what `base` returned.
        logits: float [B, L, V], the model's own.
        tokens: how many input vectors each module was handed, call by call, by its id.
        products: of each parameter, by its id, those that were made with it.
    """

    base: nn.Module
    output: Any
    logits: Tensor
    tokens: dict[int, list[int]] = field(default_factory=dict)
    products: dict[int, list[Product]] = field(default_factory=dict)


def observe(model: Any, ids_BL: Tensor, cached: bool = False) -> Observed:
    """Runs a Hugging Face causal language model once; `cached` as in `arguments`.

    Raises:
        UserError: no part of it makes the hidden states, or it returns no logits.
    """
    tokens: dict[int, list[int]] = {}
    products: dict[int, list[Product]] = {}
    calls: Counter[int] = Counter()
    outputs: dict[int, Any] = {}
    candidates = holders(model)

    def noted(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim:
            tokens.setdefault(id(module), []).append(inputs[0].numel() // max(inputs[0].shape[-1], 1))

    def called(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[id(module)] += 1
        outputs[id(module)] = output

    handles = [module.register_forward_hook(noted) for module in model.modules() if not list(module.children())]
    handles += [module.register_forward_hook(called) for module in candidates]
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1 and parameter.numel()]
    try:
        with torch.no_grad(), Products(weights, lambda p: products.setdefault(id(p.weight), []).append(p)):
            result = model(**arguments(model, ids_BL, cached))
    finally:
        for handle in handles:
            handle.remove()
    base = next((module for module in candidates if calls[id(module)] == 1), None)
    logits = getattr(result, "logits", None)
    if base is None or not isinstance(logits, Tensor) or logits.shape[:2] != ids_BL.shape:
        raise UserError(
            f"{type(model).__name__} cannot be traced",
            got="no logits of every token" if base is not None else "no part of it that makes hidden states",
            expected="a causal language model: a body that makes hidden states, and a head",
            fix="trace another model",
        )
    return Observed(base, outputs[id(base)], logits, tokens, products)


def holders(model: Any) -> list[nn.Module]:
    """The modules below the model that hold its embedding, outermost first."""
    embedding = model.get_input_embeddings()
    found = [module for module in model.modules() if any(part is embedding for part in module.modules())]
    return [module for module in found if module is not model and module is not embedding]


def arguments(model: Any, ids_BL: Tensor, cached: bool = False) -> dict[str, Any]:
    """What a forward pass over padded tokens is given.

    Nothing is masked: padding stands after the text, where causal attention never looks. Saying so keeps transformers
    from looking for packed sequences, and from making masks for them.

    Args:
        cached: keep keys and values, for the models whose later layers read those of earlier ones from there.
    """
    known = inspect.signature(model.forward).parameters
    wanted = {"attention_mask": torch.ones_like(ids_BL), "use_cache": cached}
    return {"input_ids": ids_BL, **{name: value for name, value in wanted.items() if name in known}}


@torch.no_grad()
def needs_cache(model: Any, ids_BL: Tensor, logits_BLV: Tensor) -> bool:
    """Whether a model computes something else without a cache of keys and values than it does by default."""
    own_BLV = model(input_ids=ids_BL).logits
    return relative(logits_BLV, own_BLV) > closeness(own_BLV.dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    """The greatest difference, over the greatest value; 0 where neither is a number."""
    got, expected = got.float(), expected.float()
    if not torch.isfinite(expected).all():
        return 0.0  # weights that are not finite: whoever makes rows of them is told whose
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def closeness(dtype: torch.dtype) -> float:
    """How far logits may be apart that are the same but for rounding."""
    return 1e-4 if dtype == torch.float32 else 0.05
