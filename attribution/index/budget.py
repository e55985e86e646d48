"""How many dimensions fit into a number of bytes a passage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from headwater.attribution.index.windows import bytes_per_passage
from headwater.attribution.rows.collector import module_dims
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.settings import ProjectionSettings
from headwater.configs.errors import UserError


def fit_budget(
    projection: ProjectionSettings, shapes: Mapping[str, tuple[int, int]], codec: str, budget: int
) -> ProjectionSettings:
    """The projection with the most dimensions per side whose rows take at most `budget` bytes a passage.

    Modules for which `projection.modules` names dimensions of their own keep them.

    Args:
        projection: what else is set.
        shapes: (O, I) of every linear layer.
        codec: how rows are stored.
        budget: bytes a passage.

    Raises:
        UserError: not even one dimension per side fits.
    """

    def size(dims: int) -> int:
        widths = module_dims(dict(shapes), replace(projection, dims=dims))
        return bytes_per_passage(RowLayout((name, *each) for name, each in widths.items()), codec)

    low, high = 1, max(max(shape) for shape in shapes.values())
    if size(low) > budget:
        raise UserError(
            "the budget is too small for a row", got=f"{budget} bytes", expected=f"at least {size(low)} with {codec}"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle - 1)
    return replace(projection, dims=low)
