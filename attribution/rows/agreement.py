"""Whether the rows of a model are its gradients: held against autograd's own `weight.grad` before any row is used.

Two short examples are projected as every row is, together, and of each kind of layer (names that differ in numbers
only) the first and the last are compared with the dense gradients that autograd takes of the model's own loss, one
example at a time. So a layer that multiplies something else than it is handed, that is used twice, whose tokens stand
in another order, or a head that does more than a product, is found whatever the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.models.base import Example, Site, TracedModel
from headwater.attribution.rows.hooks import Target, Watcher, names_of, sign_parts
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import UserError

LENGTHS = (9, 6)
"""Tokens of the examples."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Greatest relative difference of a layer's row; below float32 the products themselves are as rough as `ROUGH`."""
ROUGH = 0.25
_DIMS, _SEED = 8, 0


def require_agreement(model: TracedModel, names: list[str]) -> None:
    """Checks the rows of the named layers of a model, once.

    Raises:
        UserError: naming the layers whose rows are not their gradients.
    """
    if model.agreed.issuperset(names):
        return
    examples = short_examples(model)
    shapes = model.all_shapes
    layout = RowLayout((name, min(_DIMS, shapes[name][0]), min(_DIMS, shapes[name][1])) for name in names)
    watcher = Watcher(model.sites, layout, _SEED, model.device)
    watcher.correct(lambda site: None)
    batches = [[example] for example in examples] if model.alone else [examples]
    chosen = first_and_last(names_of(watcher.sites))
    sites = [site for site in watcher.sites if site.name in chosen]
    try:
        got_BD = torch.cat([_rows(model, watcher, batch) for batch in batches])
        expected = [gradients(model, watcher, sites, example) for example in examples]
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:  # code of any family
        raise UserError(
            "this model cannot be traced: its backward pass does not come through",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="a forward and a backward pass",
            fix="trace another model",
        ) from error
    wrong = differing(watcher, chosen, got_BD, expected, tolerance_of(model))
    if wrong:
        worst = max(wrong, key=lambda name: wrong[name])
        raise UserError(
            f"this model cannot be traced: its rows are not its gradients in {some(list(wrong))}",
            got=f"a relative difference of {wrong[worst]:.2g} in {worst}, on {len(examples)} examples",
            expected=f"at most {tolerance_of(model):.2g}, against autograd's gradients of the model's own loss",
            fix=f"leave them out: projection.modules={{'{worst}': 0}}, or trace another model",
        )
    model.agreed.update(names)


def some(names: list[str]) -> str:
    """The first of them."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def short_examples(model: TracedModel) -> list[Example]:
    """Random tokens; the second is shorter, so that a padded batch is padded."""
    draw = np.random.default_rng(0)
    longest = min(LENGTHS[0], model.context or LENGTHS[0])
    lengths = longest, max(2, min(LENGTHS[1], longest - 1))
    return [Example(draw.integers(0, model.vocabulary or 2, size=length)) for length in lengths]


def tolerance_of(model: TracedModel) -> float:
    return TOLERANCE.get(model.sites[0].weight.dtype, ROUGH) if model.sites else ROUGH


def first_and_last(names: list[str]) -> list[str]:
    """Of each kind of layer the first and the last. Names are of one kind if they differ only in parts that are numbers
    (`layers.0`): fc1 and fc2 are two."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
    return [name for kind in kinds.values() for name in dict.fromkeys((kind[0], kind[-1]))]


def watched_pass(
    watcher: Watcher,
    target: Target,
    target_of: Callable[[Site], Target],
    backward: Callable[[], None],
    predicting: Callable[[], Tensor] | None = None,
) -> None:
    """One forward and backward pass whose rows go to the target; `predicting` as in `Watcher.attach`."""
    handles = watcher.attach(target_of, predicting)
    try:
        backward()
    finally:
        for handle in handles:
            handle.remove()
    watcher.finish(target)


def _rows(model: TracedModel, watcher: Watcher, examples: list[Example]) -> Tensor:
    dims = max(span.stop for span in watcher.spans.values())
    target = Target(torch.zeros(len(examples), dims, device=model.device), [])

    def target_of(site: Site) -> Target:
        target.bounds = model.bounds
        return target

    watched_pass(watcher, target, target_of, lambda: model.backward(examples, "cross_entropy"))
    return target.rows_BD


def gradients(model: TracedModel, watcher: Watcher, sites: list[Site], example: Example) -> dict[str, Tensor]:
    """The projected dense gradients [kO, kI] of some layers, as autograd makes them, float64; of what this rank has."""
    weights = {id(site.weight): site.weight for site in sites}
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.grad = None
    try:
        model.own_backward(example)
        found: dict[str, Tensor] = {}
        for site in {(id(site.weight), site.piece): site for site in sites}.values():
            if site.weight.grad is None:
                continue
            part = projected(watcher, site, site.matrix(site.weight.grad).double())
            found[site.name] = found.get(site.name, 0) + part
        return found
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def projected(watcher: Watcher, site: Site, dense_OI: Tensor) -> Tensor:
    """A dense gradient [O, I] of the part of a layer that is here, projected as the watcher's rows are: [kO, kI], in
    its type."""
    span = watcher.spans[site.name]
    left_Ok = sign_parts(watcher.seed, f"{site.name}/out", site.shape[0], span.k_out, site.out_parts)
    right_Ik = sign_parts(watcher.seed, f"{site.shared}/in", site.shape[1], span.k_in, site.in_parts)
    return left_Ok.to(dense_OI).T @ dense_OI @ right_Ik.to(dense_OI)


def differing(
    watcher: Watcher, names: list[str], got_BD: Tensor, expected: list[dict[str, Tensor]], tolerance: float
) -> dict[str, float]:
    """The layers whose rows differ by more than the tolerance, with their relative differences."""
    norms = [float(value.norm()) for each in expected for value in each.values()]
    largest = max(norms, default=0.0)
    if not np.isfinite(norms).all():
        return {}  # weights that are not finite: whoever makes rows of them is told whose
    wrong = {}
    for name in names:
        span = watcher.spans[name]
        got = got_BD[:, span.slice].double()
        zero = torch.zeros(span.dims, dtype=torch.float64, device=got.device)
        right = torch.stack([each[name].flatten() if name in each else zero for each in expected])
        # A layer that hardly takes part is not held to the last digit of its noise.
        difference = float((got - right).norm() / right.norm().clamp_min(1e-4 * largest + 1e-30))
        if not difference <= tolerance:
            wrong[name] = difference
    return wrong
