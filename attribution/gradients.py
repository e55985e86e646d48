"""Gradient rows of examples: hooks on the linear layers, projected as the backward pass goes by.

For an example z and a layer with output gradients delta [T, O] and inputs a [T, I], G = delta^T a, and the row's part
is vec(P_L^T (G * W) P_R) (kernels). Nothing of size O x I is kept, and a layer's inputs are let go as soon as its
output gradient has come.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headwater.attribution.correction import correction_for
from headwater.attribution.index.layout import RowLayout
from headwater.attribution.models import Example, Site, TracedModel
from headwater.attribution.settings import ProjectionSettings
from headwater.configs.errors import UserError
from headwater.kernels import SharedProjector, signs


def module_dims(shapes: dict[str, tuple[int, int]], settings: ProjectionSettings) -> dict[str, tuple[int, int]]:
    """(kO, kI) of each module that is kept; never more than the layer has.

    Raises:
        UserError: a pattern that matches no module, or no module is left.
    """
    unused = [p for p in settings.modules if not any(fnmatch.fnmatch(name, p) for name in shapes)]
    if unused:
        raise UserError(
            f"projection.modules: no module matches {', '.join(unused)}", expected=f"patterns over {', '.join(shapes)}"
        )
    dims = {}
    for name, (outputs, inputs) in shapes.items():
        matching = [width for pattern, width in settings.modules.items() if fnmatch.fnmatch(name, pattern)]
        width = matching[-1] if matching else settings.dims
        if width:
            dims[name] = (min(width, outputs), min(width, inputs))
    if not dims:
        raise UserError("projection.modules leaves no module", got=settings.modules)
    return dims


def row_layout(model: TracedModel, settings: ProjectionSettings) -> RowLayout:
    """The modules of the whole model, in order."""
    return RowLayout((name, *widths) for name, widths in module_dims(model.all_shapes, settings).items())


class GradientCollector:
    """Turns examples into rows.

    Args:
        model: whose gradients.
        projection: dimensions and seed.
        correction: none, adam or adafactor.
        loss: log_odds, cross_entropy or margin.
    """

    def __init__(self, model: TracedModel, projection: ProjectionSettings, correction: str, loss: str) -> None:
        self.model, self.loss = model, loss
        self.layout = row_layout(model, projection)
        self.spans = {span.name: span for span in self.layout}
        sites = [site for site in model.sites if site.name in self.spans]
        self.groups: dict[str, list[Site]] = {}
        for site in sites:
            self.groups.setdefault(site.shared, []).append(site)
        self.projectors = {
            key: SharedProjector(*self._factors(group, projection.seed, correction))
            for key, group in self.groups.items()
        }

    def _factors(self, group: list[Site], seed: int, correction: str) -> tuple[list[Tensor], list[Tensor], list[Any]]:
        lefts, rights, corrections = [], [], []
        device = self.model.device
        for site in group:
            span = self.spans[site.name]
            lefts.append(sign_parts(seed, f"{site.name}/out", site.shape[0], span.k_out, site.out_parts).to(device))
            rights.append(sign_parts(seed, f"{site.shared}/in", site.shape[1], span.k_in, site.in_parts).to(device))
            moment = self.model.second_moment(site) if correction != "none" else None
            made = correction_for(correction, moment, site)
            corrections.append(made if made is None or device.type == "cpu" else _on(made, device))
        # One tensor for all sites of a group lets the kernels make its product with the inputs once.
        if all(right.shape == rights[0].shape for right in rights):
            rights = [rights[0]] * len(rights)
        return lefts, rights, corrections

    def rows(self, examples: Sequence[Example]) -> Tensor:
        """Raw rows of one batch of examples: float32 [len(examples), D], on the CPU.

        Raises:
            UserError: an example has no token with a loss.
        """
        for number, example in enumerate(examples):
            if not 0 < example.target_start < len(example.tokens):
                raise UserError(
                    f"example {number} has no token to take a loss on",
                    got=f"{len(example.tokens)} tokens, target from {example.target_start}",
                    expected="at least one token before the target and one in it",
                )
        rows_BD = torch.zeros(len(examples), self.layout.dims)
        with self._watching(rows_BD):
            self.model.backward(examples, self.loss)
        if self.model.world is not None and self.model.world.tensor * self.model.world.pipeline > 1:
            from megatron.core import parallel_state

            # Every rank of a replica has projected its part of the layers: the row is their sum.
            dist.all_reduce(rows_BD, group=parallel_state.get_model_parallel_group())
        return rows_BD

    @contextmanager
    def _watching(self, rows_BD: Tensor) -> Iterator[None]:
        """Hooks that fill `rows_BD` during the backward pass."""
        waiting: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}

        def watch(site: Site) -> Any:
            def forward(module: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
                out = output[0] if isinstance(output, tuple) else output
                a_TI = flat(inputs[0])
                out.register_hook(lambda delta: arrived(site, flat(delta), a_TI))

            return forward

        def arrived(site: Site, delta_TO: Tensor, a_TI: Tensor) -> None:
            group = self.groups[site.shared]
            _, deltas = waiting.setdefault(site.shared, (a_TI, {}))
            deltas[site.name] = delta_TO
            if len(deltas) < len(group):
                return
            del waiting[site.shared]
            parts = self.projectors[site.shared].rows([deltas[s.name] for s in group], a_TI, self.model.bounds)
            for member, part in zip(group, parts, strict=True):
                rows_BD[:, self.spans[member.name].slice] = part.flatten(1).cpu()

        handles = [site.module.register_forward_hook(watch(site)) for group in self.groups.values() for site in group]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def flat(x: Tensor) -> Tensor:
    """[..., F] -> [tokens, F], detached."""
    return x.detach().reshape(-1, x.shape[-1])


def sign_parts(seed: int, key: str, n: int, k: int, parts: list[tuple[int, int]]) -> Tensor:
    """The rows of the +-1 matrix [n, k] that stand for this rank's part of a dimension: [sum of parts, k]."""
    pieces = [signs(seed, key, n, k, start=start, stop=stop) for start, stop in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _on(correction: Any, device: torch.device) -> Any:
    return type(correction)(*(getattr(correction, name).to(device) for name in correction.__dataclass_fields__))


def batched(lengths: Sequence[int], batch_tokens: int, *, padded: bool = False) -> Iterator[list[int]]:
    """Numbers of examples, shortest first, in batches of at most `batch_tokens` (always at least one example).

    With `padded`, a batch is counted as its number of examples times its longest.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batch: list[int] = []
    tokens = 0
    for number in order:
        size = (len(batch) + 1) * lengths[number] if padded else tokens + lengths[number]
        if batch and size > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += lengths[number]
    if batch:
        yield batch


def collect(collector: GradientCollector, examples: Sequence[Example], batch_tokens: int) -> Tensor:
    """Raw rows of any number of examples, in their order: float32 [n, D]."""
    rows_ND = torch.empty(len(examples), collector.layout.dims)
    for batch in batched([len(example.tokens) for example in examples], batch_tokens):
        rows_ND[batch] = collector.rows([examples[i] for i in batch])
    return rows_ND
