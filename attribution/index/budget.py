"""How many dimensions fit into a number of bytes a passage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from headwater.attribution.index.windows import bytes_per_passage
from headwater.attribution.rows.collector import module_dims
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.settings import ProjectionSettings
from headwater.configs.errors import UserError


def fit_budget(
    projection: ProjectionSettings,
    shapes: Mapping[str, tuple[int, int]],
    codec: str,
    budget: int,
    head: tuple[str, tuple[int, int]] | None = None,
) -> ProjectionSettings:
    """The projection with the most dimensions per side whose rows take at most `budget` bytes a passage.

    Modules for which `projection.modules` names dimensions of their own keep them. The output head has the most of its
    `projection.head` dimensions that fit into half of the bytes, or into all where no other module is left.

    Args:
        projection: what else is set.
        shapes: (O, I) of every linear layer.
        codec: how rows are stored.
        budget: bytes a passage.
        head: name and shape of the output head, where it can have rows.

    Raises:
        UserError: not even one dimension per side fits.
    """

    def size(tried: ProjectionSettings) -> int:
        widths = module_dims(dict(shapes), tried, head)
        return bytes_per_passage(RowLayout((name, *each) for name, each in widths.items()), codec)

    if head is not None and projection.head:
        alone = replace(projection, modules={"*": 0})
        rest = any(name != head[0] for name in module_dims(dict(shapes), projection, head))
        fits = most(lambda k: size(replace(alone, head=k)) <= (budget // 2 if rest else budget), projection.head)
        projection = replace(projection, head=max(fits, 1))
        if not rest and fits:
            return projection
    found = most(lambda k: size(replace(projection, dims=k)) <= budget, max(max(shape) for shape in shapes.values()))
    if not found:
        least = size(replace(projection, dims=1))
        raise UserError(
            "the budget is too small for a row", got=f"{budget} bytes", expected=f"at least {least} with {codec}"
        )
    return replace(projection, dims=found)


def most(fits: Callable[[int], bool], bound: int) -> int:
    """The greatest number from 1 to `bound` that fits, where all below it do too; 0 if none does."""
    low, high = 0, bound
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
