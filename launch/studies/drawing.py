"""Figures of sweeps and studies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from headwater.train.artifacts import atomic_path


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


def save(drawn: Any, path: Path, endings: tuple[str, ...] = ("png", "svg")) -> None:
    """Writes the figure to `path` with each of the endings; it is closed."""
    from matplotlib import pyplot

    drawn.tight_layout()
    for ending in endings:
        with atomic_path(path.with_name(f"{path.name}.{ending}")) as part:
            drawn.savefig(part, format=ending, dpi=120)
    pyplot.close(drawn)
