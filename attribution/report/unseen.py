"""The loss on documents that were never trained on, source by source, as the page draws it."""

from __future__ import annotations

import math
from typing import Any

from headwater.attribution.drawing.chart import Axis, format_tick, path, plain, spread
from headwater.attribution.report.inputs import RunData


def unseen_chart(data: RunData) -> dict[str, Any] | None:
    """Curves of the loss by source over the training, with the last perplexity of each; None where nothing was held
    out."""
    sources = list(dict.fromkeys(str(line["source"]) for line in data.validation))
    losses = {
        source: [(int(each["step"]), float(each["loss"])) for each in data.validation if each["source"] == source]
        for source in sources
    }
    finite = [loss for pairs in losses.values() for _, loss in pairs if math.isfinite(loss)]
    if not finite:
        return None
    across, up = Axis(0, max(data.steps, 1)), Axis(math.floor(min(finite)), math.floor(max(finite)) + 1)
    lines: list[dict[str, Any]] = []
    for number, (source, pairs) in enumerate(losses.items()):
        last = next((loss for _, loss in reversed(pairs) if math.isfinite(loss)), math.nan)
        ys = [up.place(loss) if math.isfinite(loss) else math.nan for _, loss in pairs]
        lines.append(
            {
                "name": source,
                "colour": number % 8,
                "path": path([across.place(step) for step, _ in pairs], ys),
                "end": up.place(last) if math.isfinite(last) else 0.0,
                "last": plain(last) if math.isfinite(last) else "–",
                "perplexity": f"{math.exp(last):,.1f}" if math.isfinite(last) and last < 700 else "–",
            }
        )
    for line, place in zip(lines, spread([line["end"] for line in lines], 6.2), strict=True):
        line["label"] = place
    return {
        "lines": lines,
        "ticks": [(up.place(tick), format_tick(tick)) for tick in up.ticks()],
        "xticks": [(across.place(tick), f"{tick:,.0f}") for tick in across.ticks(6)],
        "step": max(int(line["step"]) for line in data.validation),
    }
