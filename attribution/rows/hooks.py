"""Hooks on linear layers that project each layer's gradient as a backward pass goes by.

Shared by the rows of given examples (collector.py) and the rows of a running training (capture/).

A layer delivers once per use: a layer that is used twice adds up. Layers that read one input are projected together,
so that the input's part is made once: those that a forward pass calls with one tensor are one `Use`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from headwater.attribution.models.base import Site
from headwater.attribution.models.products import Product, Products
from headwater.attribution.rows.head import HeadWatch
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import UserError
from headwater.kernels import Correction, SharedProjector, signs


@dataclass(slots=True, eq=False)
class Use:
    """One input [T, I] and the layers that read it, with their output gradients [T, O] once these have come.

    Attributes:
        source: the tensor that the layers were handed, and `version`, how often it had been written to by then.
    """

    source: Tensor | None
    version: int
    a_TI: Tensor | None
    deltas: dict[Site, Tensor | None] = field(default_factory=dict)

    def release(self) -> None:
        """Lets the tensors go: the graph, which knows of this use, lives longer."""
        self.source, self.a_TI, self.deltas = None, None, {}


@dataclass(slots=True, eq=False)
class Target:
    """Where the rows of one forward and backward pass go.

    Attributes:
        rows_BD: float32 [segments, D]; each use of a layer is added to the layer's part.
        bounds: where the segments begin and end in the flattened tokens, rising, [segments + 1].
        called, delivered: names of the layers whose forward pass, and whose gradient, came by.
        waiting: uses by what their layers share.
    """

    rows_BD: Tensor
    bounds: list[int]
    called: set[str] = field(default_factory=set)
    delivered: set[str] = field(default_factory=set)
    waiting: dict[tuple[str, int], list[Use]] = field(default_factory=dict)
    _there: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def placed(self, bounds: list[int]) -> list[int] | Tensor:
        """Bounds as the kernels take them: on a GPU int32 [segments + 1], copied there once for all layers."""
        device = self.rows_BD.device
        if device.type == "cpu":
            return bounds
        key = tuple(bounds)
        if key not in self._there:
            here = torch.tensor(bounds, dtype=torch.int32).pin_memory()  # or the host would wait for the copy
            self._there[key] = here.to(device, non_blocking=True)
        return self._there[key]


class Handle(Protocol):
    """What takes a hook off again."""

    def remove(self) -> None: ...


class Watcher:
    """The projections of some layers, and hooks that fill a target with their rows.

    Args:
        sites: the linear layers on this rank.
        layout: of the rows; a site that is not in it is left alone.
        seed: of the +-1 matrices.
        device: where the layers are.
        whole: brings inputs or output gradients [t, F] that a rank has only a part of to [T, F]; None if it has all.
        head: the output head, or this rank's part of it, if it is to be watched.
    """

    def __init__(
        self,
        sites: list[Site],
        layout: RowLayout,
        seed: int,
        device: torch.device,
        whole: Callable[[Tensor, int], Tensor] | None = None,
        head: Site | None = None,
    ) -> None:
        self.spans = {span.name: span for span in layout}
        self.seed, self.device, self.whole = seed, device, whole
        self.sites = [site for site in sites if site.name in self.spans]
        """The watched layers of the blocks."""
        self.head = head
        self._corrections: dict[Site, Correction | None] = {}
        self._projectors: dict[tuple[Site, ...], SharedProjector] = {}
        self._signs: dict[Any, Tensor] = {}
        self._anchor = torch.zeros((), requires_grad=True)

    @property
    def watched(self) -> list[Site]:
        """The layers of the blocks, and the head."""
        return [*self.sites, self.head] if self.head is not None else self.sites

    def correct(self, correction: Callable[[Site], Correction | None]) -> None:
        """Folds corrections (of the part of a layer that is here) into the projections, in place of earlier ones."""
        self._corrections = {site: moved(correction(site), self.device) for site in self.watched}
        self._projectors = {}

    def attach(
        self, target_of: Callable[[Site], Target | None], predicting: Callable[[], Tensor] | None = None
    ) -> list[Handle]:
        """Registers the hooks and returns their handles.

        With frozen weights the graph begins at the first watched layer's output: nothing before it is differentiated.

        Args:
            target_of: asked at each forward pass of a layer that will be differentiated, of the head at each chunk of
                its loss: one object for all layers of a pass; None: this one is not watched.
            predicting: for the head: asked for the places, int64 [K], that predict a token with a loss.
        """
        handles: list[Handle] = [
            site.module.register_forward_hook(self._hook(site, target_of))
            for site in self.sites
            if site.module is not None
        ]
        pieces = {(id(site.weight), site.piece): site for site in self.sites if site.module is None}
        if pieces:
            handles.append(_Entered(self._products(pieces, target_of)))
        if self.head is not None and predicting is not None:
            handles.append(self._head_watch(self.head, target_of, predicting))
        return handles

    def _head_watch(
        self, head: Site, target_of: Callable[[Site], Target | None], predicting: Callable[[], Tensor]
    ) -> HeadWatch:
        target: list[Target | None] = [None]

        def bounds() -> list[int] | Tensor | None:
            target[0] = target_of(head)
            return None if target[0] is None else target[0].placed(target[0].bounds)

        def seen(pull_CV: Tensor, hidden_Cd: Tensor, edges: Tensor) -> None:
            into = target[0]
            assert into is not None
            if pull_CV.dtype != hidden_Cd.dtype:
                pull_CV, hidden_Cd = pull_CV.float(), hidden_Cd.float()
            here = edges if self.device.type != "cpu" else edges.tolist()
            (part,) = self._projector((head,)).rows([pull_CV], hidden_Cd, here)
            into.rows_BD[:, self.spans[head.name].slice] += part.flatten(1).to(into.rows_BD.device)
            into.called.add(head.name)
            into.delivered.add(head.name)

        return HeadWatch(predicting, bounds, seen).__enter__()

    def _hook(self, site: Site, target_of: Callable[[Site], Target | None]) -> Any:
        def forward(module: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
            target = target_of(site) if torch.is_grad_enabled() else None
            if target is not None:
                out = self._begun(output[0] if isinstance(output, tuple) else output)
                use = self._use(site, inputs[0], target)
                out.register_hook(lambda delta: self._arrived(site, flat(delta), use, target))

        return forward

    def _products(self, pieces: dict[Any, Site], target_of: Callable[[Site], Target | None]) -> Products:
        def seen(product: Product) -> None:
            sites = [pieces.get((id(product.weight), number)) for number in product.pieces()]
            if not torch.is_grad_enabled() or product.out.numel() == 0:
                return
            for place, site in enumerate(sites):
                target = target_of(site) if site is not None else None
                if site is None or target is None:
                    continue
                out = self._begun(product.out)
                use = self._use(site, product.given, target, place if product.batched else None)
                out.register_hook(_part(self, site, place if product.batched else None, use, target))

        weights = {id(site.weight): site.weight for site in pieces.values()}
        return Products(weights.values(), seen)

    def _begun(self, out: Tensor) -> Tensor:
        """The output of a layer, differentiable. Not made a leaf: models write into what a layer has returned."""
        return out if out.requires_grad else _Begin.apply(out, self._anchor.to(out.device))

    def _use(self, site: Site, given: Tensor, target: Target, place: int | None = None) -> Use:
        """The use of a layer's input that a call belongs to: that of another layer which was handed the same tensor,
        or a new one."""
        target.called.add(site.name)
        uses = target.waiting.setdefault(site.group, [])
        for use in uses:
            if use.source is given and use.version == given._version and site not in use.deltas:
                use.deltas[site] = None
                return use
        with torch.no_grad():
            a_TI = flat(site.true_input(given if place is None else given[place]))
        uses.append(Use(given, given._version, a_TI, {site: None}))
        return uses[-1]

    def _arrived(self, site: Site, delta_TO: Tensor, use: Use, target: Target) -> None:
        use.deltas[site] = delta_TO
        target.delivered.add(site.name)
        if all(delta is not None for delta in use.deltas.values()):
            self._fill(site.group, use, target)

    def finish(self, target: Target) -> None:
        """Projects what waits for layers whose gradient never came: nothing that they gave was used."""
        for group in list(target.waiting):
            for use in list(target.waiting.get(group, [])):
                self._fill(group, use, target)

    def _fill(self, group: tuple[str, int], use: Use, target: Target) -> None:
        target.waiting[group] = [other for other in target.waiting[group] if other is not use]
        came = {site: delta_TO for site, delta_TO in use.deltas.items() if delta_TO is not None}
        sites = tuple(sorted(came, key=lambda site: self.spans[site.name].start))
        source, a_TI, deltas = use.source, use.a_TI, [came[site] for site in sites]
        assert source is not None
        assert a_TI is not None
        unchanged = source._version == use.version
        use.release()
        if not sites:
            return
        if not unchanged:
            raise UserError(
                f"{sites[0].name} cannot be traced: the model writes into the layer's input after using it",
                expected="an input that stays as it was until the backward pass",
                fix=f"leave it out: projection.modules={{'{sites[0].name}': 0}}",
            )
        if self.whole is not None:
            a_TI = self.whole(a_TI, target.bounds[-1])
            deltas = [self.whole(delta_TO, target.bounds[-1]) for delta_TO in deltas]
        if any(delta_TO.dtype != a_TI.dtype for delta_TO in deltas):  # a model that computes partly in float32
            a_TI, deltas = a_TI.float(), [delta_TO.float() for delta_TO in deltas]
        bounds = target.placed(segments_seen(sites[0], len(a_TI), target.bounds))
        for site, part in zip(sites, self._projector(sites).rows(deltas, a_TI, bounds), strict=True):
            target.rows_BD[:, self.spans[site.name].slice] += part.flatten(1).to(target.rows_BD.device)

    def _projector(self, sites: tuple[Site, ...]) -> SharedProjector:
        if sites not in self._projectors:
            lefts = [self._sign(f"{s.name}/out", s.shape[0], self.spans[s.name].k_out, s.out_parts) for s in sites]
            rights = [self._sign(f"{s.shared}/in", s.shape[1], self.spans[s.name].k_in, s.in_parts) for s in sites]
            # One tensor for all sites of a group lets the kernels make its product with the inputs once.
            corrections = [self._corrections[site] for site in sites]
            self._projectors[sites] = SharedProjector(lefts, rights, corrections)
        return self._projectors[sites]

    def _sign(self, key: str, n: int, k: int, parts: list[tuple[int, int]]) -> Tensor:
        """`sign_parts`, made once."""
        known = (key, n, k, tuple(parts))
        if known not in self._signs:
            self._signs[known] = sign_parts(self.seed, key, n, k, parts).to(self.device)
        return self._signs[known]


class _Begin(torch.autograd.Function):
    """A tensor without a graph becomes one that requires gradients, at no cost."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class _Entered:
    """A mode that is in force until it is removed."""

    def __init__(self, mode: Products) -> None:
        self._mode = mode
        mode.__enter__()

    def remove(self) -> None:
        self._mode.__exit__(None, None, None)


def _part(watcher: Watcher, site: Site, place: int | None, use: Use, target: Target) -> Any:
    """A hook that hands on the output gradient, or the place of a batched one."""

    def arrived(delta: Tensor) -> None:
        watcher._arrived(site, flat(delta if place is None else delta[place]), use, target)

    return arrived


def segments_seen(site: Site, tokens: int, bounds: list[int]) -> list[int]:
    """Where the segments begin and end among the tokens that a layer saw.

    Raises:
        UserError: it did not see every token, and there are several segments.
    """
    if site.routed and len(bounds) == 2:
        return [0, tokens]
    if site.routed or bounds[-1] > tokens:
        raise UserError(
            f"{site.name} cannot be traced: it does not see every token, and whose are whose cannot be said",
            got=f"{tokens} tokens",
            expected=f"{bounds[-1]} tokens in {len(bounds) - 1} segments, in their order",
            fix=f"leave it out: projection.modules={{'{site.name}': 0}}",
        )
    return bounds


def names_of(sites: Iterable[Site]) -> list[str]:
    """Each layer's name once, in order."""
    return list(dict.fromkeys(site.name for site in sites))


def flat(x: Tensor) -> Tensor:
    """[..., F] -> [tokens, F], detached."""
    return x.detach().reshape(-1, x.shape[-1])


def sign_parts(seed: int, key: str, n: int, k: int, parts: list[tuple[int, int]]) -> Tensor:
    """The rows of the +-1 matrix [n, k] that stand for this rank's part of a dimension: [sum of parts, k]."""
    pieces = [signs(seed, key, n, k, start=start, stop=stop) for start, stop in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def moved(correction: Correction | None, device: torch.device) -> Correction | None:
    """The correction on a device."""
    if correction is None:
        return None
    return type(correction)(*(getattr(correction, name).to(device) for name in correction.__dataclass_fields__))
