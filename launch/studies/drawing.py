"""Figures of the studies' pages, as PNG."""

from __future__ import annotations

import io
from typing import Any


def figure(columns: int, width: float, height: float, *, sharey: bool = False) -> tuple[Any, Any]:
    """A row of axes, inches wide and high; returns (figure, axes)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False, sharey=sharey)
    return drawn, axes[0]


def as_png(drawn: Any) -> bytes:
    """The figure's bytes; it is closed."""
    from matplotlib import pyplot

    data = io.BytesIO()
    drawn.tight_layout()
    drawn.savefig(data, format="png", dpi=110)
    pyplot.close(drawn)
    return data.getvalue()
