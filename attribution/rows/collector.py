"""Gradient rows of examples: hooks on the linear layers, projected as the backward pass goes by.

For an example z and a layer with output gradients delta [T, O] and inputs a [T, I], G = delta^T a, and the row's part
is vec(P_L^T (G * W) P_R) (kernels). Nothing of size O x I is kept, and a layer's inputs are let go as soon as its
output gradient has come.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from headwater.attribution.models.base import Example, Site, TracedModel
from headwater.attribution.rows.agreement import require_agreement, some, watched_pass
from headwater.attribution.rows.correction import part_of, whole_correction
from headwater.attribution.rows.hooks import Target, Watcher
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.settings import ProjectionSettings
from headwater.configs.errors import UserError
from headwater.train.stream.passages import PassageSet


def module_dims(
    shapes: dict[str, tuple[int, int]],
    settings: ProjectionSettings,
    head: tuple[str, tuple[int, int]] | None = None,
) -> dict[str, tuple[int, int]]:
    """(kO, kI) of each module that is kept; never more than the layer has.

    Args:
        shapes: (O, I) of each layer of the blocks.
        head: name and shape of the output head, where it can have rows.

    Raises:
        UserError: a pattern that matches no module, or no module is left.
    """
    unused = [p for p in settings.modules if not any(fnmatch.fnmatch(name, p) for name in shapes)]
    if unused:
        raise UserError(
            f"projection.modules: no module matches {', '.join(unused)}", expected=f"patterns over {', '.join(shapes)}"
        )
    widths = {}
    for name in shapes:
        matching = [width for pattern, width in settings.modules.items() if fnmatch.fnmatch(name, pattern)]
        widths[name] = matching[-1] if matching else settings.dims
    whole = dict(shapes)
    if head is not None:
        widths[head[0]], whole[head[0]] = settings.head, head[1]
    dims = {name: (min(width, whole[name][0]), min(width, whole[name][1])) for name, width in widths.items() if width}
    if not dims:
        raise UserError(
            "the projection leaves no module", got=settings.modules, fix="set projection.head, or leave some"
        )
    return dims


def row_layout(model: TracedModel, settings: ProjectionSettings) -> RowLayout:
    """The modules of the whole model, in order, and its output head where that can have rows."""
    modules = module_dims(model.all_shapes, settings, model.head_shape)
    return RowLayout((name, *widths) for name, widths in modules.items())


class GradientCollector:
    """Turns examples into rows.

    Args:
        model: whose gradients; held against its own autograd first, if that has not been done.
        projection: dimensions and seed.
        correction: none, adam or adafactor.
        loss: log_odds, cross_entropy or margin.
        eps: of the correction; the model's own if not given.

    Raises:
        UserError: the model's rows are not its gradients, a pattern of `projection` fits no module.
        MismatchError: the moments are not the model's.
    """

    def __init__(
        self,
        model: TracedModel,
        projection: ProjectionSettings,
        correction: str,
        loss: str,
        eps: float | None = None,
    ) -> None:
        self.model, self.loss = model, loss
        self.layout = row_layout(model, projection)
        require_agreement(model, [name for name in self.layout.names if name in model.all_shapes])
        head = model.head if projection.head else None
        self.watcher = Watcher(model.sites, self.layout, projection.seed, model.device, head=head)
        self.spans = self.watcher.spans
        # An expert that no token was sent to delivers nothing.
        self._always = {site.name for site in self.watcher.watched if not site.routed}
        self.correct(correction, eps)

    def correct(self, correction: str, eps: float | None = None) -> None:
        """Takes another correction for the rows from now on; arguments as of the constructor.

        Raises:
            MismatchError: the moments are not the model's.
        """
        whole: dict[str, Any] = {}
        eps = self.model.eps if eps is None else eps

        def corrected(site: Site) -> Any:
            if site.name not in whole:  # the parts of a layer come one after the other
                whole.clear()
                moment = self.model.second_moment(site) if correction != "none" else None
                whole[site.name] = whole_correction(correction, moment, site.name, site.shape, eps)
            return part_of(whole[site.name], site)

        self.watcher.correct(corrected)

    @property
    def coverage(self) -> float:
        """Share of the model's parameters whose gradients the rows hold, projected."""
        shapes = dict(self.model.all_shapes)
        if self.model.head_shape is not None:
            name, shape = self.model.head_shape
            shapes[name] = shape
        return sum(shapes[name][0] * shapes[name][1] for name in self.layout.names) / max(self.model.parameters, 1)

    def rows(self, examples: Sequence[Example]) -> Tensor:
        """Raw rows of one batch of examples: float32 [len(examples), D], on the CPU.

        Raises:
            UserError: an example has no token with a loss, or one that the model does not know; a layer delivered
                nothing.
        """
        return self.rows_made(examples).cpu()

    def rows_made(self, examples: Sequence[Example]) -> Tensor:
        """`rows` where they are made: nobody has waited yet for a GPU that makes them."""
        for number, example in enumerate(examples):
            self._check(number, example)
        if self.model.alone:
            return torch.cat([self._rows([example], None) for example in examples])
        return self._rows(examples, None)

    def _check(self, number: int, example: Example) -> None:
        if not 0 < example.target_start < len(example.tokens):
            raise UserError(
                f"example {number} has no token to take a loss on",
                got=f"{len(example.tokens)} tokens, target from {example.target_start}",
                expected="at least one token before the target and one in it",
            )
        if example.weights is not None and not usable(example):
            raise UserError(
                f"example {number} has weights that cannot be taken",
                got=f"{np.shape(example.weights)} weights for {len(example.tokens)} tokens",
                expected="one finite number a token, not all 0 from the target on",
            )
        low, high = int(np.min(example.tokens)), int(np.max(example.tokens))
        if low < 0 or (self.model.vocabulary is not None and high >= self.model.vocabulary):
            raise UserError(
                "a token is not in the model's vocabulary",
                got=f"token {low if low < 0 else high}",
                expected=f"0 to {(self.model.vocabulary or 0) - 1}",
                fix="use the tokenizer that was saved with this model",
            )

    def token_rows(self, example: Example) -> Tensor:
        """What each place of one example adds to its raw row: float32 [T, D], on the CPU; the row is their sum.

        Raises:
            UserError: a layer sees some tokens only (experts): their places are not known.
        """
        return self._rows([example], list(range(len(example.tokens) + 1))).cpu()

    def _rows(self, examples: Sequence[Example], bounds: list[int] | None) -> Tensor:
        """Rows of the segments between `bounds`, by default those of the examples, of one forward and backward pass."""
        count = len(examples) if bounds is None else len(bounds) - 1
        target = Target(torch.zeros(count, self.layout.dims, device=self.model.device), bounds or [])

        def target_of(site: Site) -> Target:
            if bounds is None:
                target.bounds = self.model.bounds  # known by the time the first layer runs
            return target

        watched_pass(
            self.watcher,
            target,
            target_of,
            lambda: self.model.backward(examples, self.loss),
            predicting=lambda: self.model.predicting,
        )
        silent = sorted(self._always - target.delivered)
        if silent:
            raise UserError(
                f"{len(silent)} layers delivered no gradient",
                got=some(silent),
                expected="one for each use of every layer",
                fix="leave them out (projection.modules={'NAME': 0}) if the model does not use them",
            )
        if self.model.world is not None and self.model.world.tensor * self.model.world.pipeline > 1:
            from headwater.train import parallel

            # Every rank of a replica has projected its part of the layers: the row is their sum.
            dist.all_reduce(target.rows_BD, group=parallel.replica_group())
        return target.rows_BD


def usable(example: Example) -> bool:
    """Whether an example's weights are one for each token, finite, and leave a loss."""
    weights = np.asarray(example.weights)
    fits = weights.shape == (len(example.tokens),) and bool(np.isfinite(weights).all())
    return fits and bool(example.loss_weights.any())


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
    before: tuple[list[int], Tensor] | None = None
    for batch in batched([len(example.tokens) for example in examples], batch_tokens):
        made = batch, collector.rows_made([examples[i] for i in batch])
        if before is not None:  # copied while a GPU makes the next
            rows_ND[before[0]] = before[1].cpu()
        before = made
    if before is not None:
        rows_ND[before[0]] = before[1].cpu()
    return rows_ND


def collect_passages(
    collector: GradientCollector, passages: PassageSet, numbers: Sequence[int], batch_tokens: int
) -> Tensor:
    """Raw rows of passages, float32 [n, D]: zeros for one in which no token carries loss (a user's long turn)."""
    return collect_read(collector, [Example.of_passage(passages, number) for number in numbers], batch_tokens)


def collect_read(collector: GradientCollector, examples: Sequence[Example], batch_tokens: int) -> Tensor:
    """`collect_passages` of passages that have been read."""
    taught = [place for place, each in enumerate(examples) if each.weights is None or each.loss_weights.any()]
    if len(taught) == len(examples):
        return collect(collector, examples, batch_tokens)
    rows_ND = torch.zeros(len(examples), collector.layout.dims)
    rows_ND[taught] = collect(collector, [examples[place] for place in taught], batch_tokens)
    return rows_ND
