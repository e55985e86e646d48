"""Matrix products with given weights, seen where they are made: `x @ W[e]`, `F.linear(x, W)`, `torch.bmm(x, W)`.

For weights that no `nn.Linear` holds: experts in one tensor [E, I, O], routers, what a model multiplies by hand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PLACES = {
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm), (0, 1)
    ),
    **dict.fromkeys((torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm), (1, 2)),
    F.linear: (0, 1),
}
"""Where the two factors stand among a function's arguments."""


@dataclass(slots=True)
class Product:
    """out = a @ M, where M is one piece, or several, of a weight.

    A weight of B columns is read as [rows, B] and cut into pieces of `height` rows: the experts of a stack; one piece
    if all of it is multiplied at once.

    Attributes:
        weight: the parameter.
        height: rows of a piece.
        first: number of the first piece that is multiplied.
        turned: a piece is stored as [I, O], else as [O, I].
        given, out: the factor and the product, [..., I] and [..., O]; [pieces, T, I] and [pieces, T, O] if `batched`.
        batched: each piece has a factor of its own.
    """

    weight: nn.Parameter
    height: int
    first: int
    turned: bool
    given: Tensor
    out: Tensor
    batched: bool

    def pieces(self) -> range:
        return range(self.first, self.first + (len(self.given) if self.batched else 1))


class Products(TorchFunctionMode):
    """While it is entered, tells of every product with one of the weights.

    Args:
        weights: the parameters.
        seen: called with each product, before anybody else has it.
    """

    def __init__(self, weights: Iterable[nn.Parameter], seen: Callable[[Product], None]) -> None:
        super().__init__()
        self.seen = seen
        self._weights = sorted(weights, key=lambda weight: weight.data_ptr())
        self._starts = [weight.data_ptr() for weight in self._weights]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        places = _PLACES.get(func)
        if places is not None and len(args) > places[1]:
            given, factor = args[places[0]], args[places[1]]
            weight = self._weight_of(factor)
            if weight is not None:
                product = as_product(weight, factor.mT if func is F.linear else factor, given, out)
                if product is not None:
                    self.seen(product)
        return out

    def _weight_of(self, factor: Tensor) -> nn.Parameter | None:
        """The weight whose memory a factor lies in."""
        place = bisect_right(self._starts, factor.data_ptr()) - 1
        if place < 0:
            return None
        weight = self._weights[place]
        return weight if factor.data_ptr() < weight.data_ptr() + weight.nbytes else None


def as_product(weight: nn.Parameter, factor: Tensor, given: Tensor, out: Tensor) -> Product | None:
    """The product out = given @ factor, with a factor [..., I, O] that lies in a weight; None if it is not made of
    whole rows of the weight."""
    columns = weight.shape[-1]
    rows, width = factor.shape[-2:]
    if factor.ndim not in (2, 3) or not weight.is_contiguous():
        return None
    turned = width == columns and factor.stride()[-2:] == (columns, 1)
    if not turned:
        rows, width = width, rows
        if width != columns or factor.stride()[-2:] != (1, columns):
            return None
    first, rest = divmod(int(factor.storage_offset()) - int(weight.storage_offset()), columns * rows)
    batched = factor.ndim == 3
    if rest or (weight.numel() % (columns * rows)) or (batched and factor.stride(0) != columns * rows):
        return None
    if batched and (given.ndim != 3 or len(given) != len(factor)):
        return None
    return Product(weight, rows, first, turned, given, out, batched)
