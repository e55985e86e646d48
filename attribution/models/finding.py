"""The linear layers of a Hugging Face model as sites, from what was seen of them in a forward pass.

`nn.Linear` and `Conv1D` layers are watched by hooks. What else a model multiplies with (experts in one tensor, routers
that are no `nn.Linear`, layers with a forward pass of their own) is watched where the product is made (products.py).

The experts of a layer are one site, a stack of E x O outputs: their rows are added up, each under its own part of one
projection, so that a row does not grow with the number of experts.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import nn

from headwater.attribution.models.base import Site
from headwater.attribution.models.observing import Observed
from headwater.attribution.models.products import Product

_EXPERT = re.compile(r"^(.*\bexperts)\.(\d+)\.(.+)$")
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def find_sites(base: Any, head: Any, seen: Observed, tokens: int) -> tuple[list[Site], list[str]]:
    """The sites of a model's body, and the names of linear layers that it never calls.

    Args:
        base: the module whose parts are meant; names are relative to it.
        head: the output embedding, which is no site.
        seen: a forward pass over `tokens` tokens, padding included.
    """
    embeddings = {id(m.weight) for m in base.modules() if isinstance(m, nn.Embedding)}
    if head is not None and getattr(head, "weight", None) is not None:
        embeddings.add(id(head.weight))
    sites: list[Site] = []
    left_out: list[str] = []
    known: set[int] = set()
    for prefix, module in base.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.ndim < 2 or id(parameter) in embeddings:
                continue
            full = (f"{prefix}.{name}" if prefix else name).removesuffix(".weight")
            made = seen.products.get(id(parameter), [])
            calls = seen.tokens.get(id(module), [])
            if is_plain(module) and len(made) == len(calls):
                if made or _EXPERT.match(full):
                    sites.append(plain_site(full, module, calls, tokens))
                else:
                    left_out.append(full)
            elif id(parameter) not in known:  # a weight of two layers, or one that is multiplied without calling any
                sites += product_sites(full, made, tokens)
            known.add(id(parameter))
    return stacked(sites), left_out


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a product with its weight and nothing else, so that a hook sees all of it."""
    from transformers.pytorch_utils import Conv1D

    kind = type(module)
    return (isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward) or kind is Conv1D


def plain_site(name: str, module: Any, calls: list[int], tokens: int) -> Site:
    from transformers.pytorch_utils import Conv1D

    turned = isinstance(module, Conv1D)
    outputs, inputs = reversed(module.weight.shape) if turned else module.weight.shape
    routed = any(count != tokens for count in calls)
    return Site(name, module, (int(outputs), int(inputs)), shared=shared_input(name), turned=turned, routed=routed)


def product_sites(name: str, made: list[Product], tokens: int) -> list[Site]:
    """A site for each piece of a weight; none if its products are not alike."""
    if not made or len({(product.height, product.turned) for product in made}) != 1:
        return []
    weight, height, turned = made[0].weight, made[0].height, made[0].turned
    pieces, columns = weight.numel() // (height * weight.shape[-1]), int(weight.shape[-1])
    outputs, inputs = (columns, height) if turned else (height, columns)
    seen = [product.given[0] if product.batched else product.given for product in made]
    routed = pieces > 1 or any(given.numel() // given.shape[-1] != tokens for given in seen)
    return [
        Site(
            name,
            None,
            (pieces * outputs, inputs),
            out_parts=[(piece * outputs, (piece + 1) * outputs)],
            parameter=weight,
            turned=turned,
            piece=piece,
            pieces=pieces,
            routed=routed,
        )
        for piece in range(pieces)
    ]


def stacked(sites: list[Site]) -> list[Site]:
    """The experts that are modules of their own brought together: those of a layer are parts of one site."""
    groups: dict[str, list[tuple[int, Site]]] = {}
    for site in sites:
        match = _EXPERT.match(site.name)
        if match and site.pieces == 1:
            groups.setdefault(f"{match[1]}.{match[3]}", []).append((int(match[2]), site))
    members = {id(site): (name, number) for name, group in groups.items() for number, site in group}
    made: list[Site] = []
    for site in sites:
        if id(site) not in members:
            made.append(site)
            continue
        name, number = members[id(site)]
        count = max(number for number, _ in groups[name]) + 1
        outputs, inputs = site.shape
        made.append(
            replace(
                site,
                name=name,
                shape=(count * outputs, inputs),
                out_parts=[(number * outputs, (number + 1) * outputs)],
                in_parts=[(0, inputs)],
                shared=shared_input(name),
                routed=True,
            )
        )
    order = {name: place for place, name in enumerate(dict.fromkeys(site.name for site in made))}
    return sorted(made, key=lambda site: order[site.name])


def shared_input(name: str) -> str:
    """Sites of one block that read one input: q, k and v; gate and up."""
    for group in _GROUPS:
        for part in group:
            if name.endswith(part):
                return name.removesuffix(part) + "/".join(group)
    return name
