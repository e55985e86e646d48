"""`headwater trace`: from queries to passages, and the published results.

headwater trace trace/default index=runs/demo/index/headwater queries=q.jsonl out=t.jsonl
headwater trace trace/default index=runs/demo/index/headwater --prompt "..." --target "..." tokens=true
torchrun --nproc-per-node 8 -m headwater.attribution.tracing trace/default index=... queries=q.jsonl parallel.tensor=8
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from headwater.attribution.settings import TraceSettings
from headwater.attribution.tracing.attributor import Asked, Attributor
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.attribution.tracing.results import write_results
from headwater.configs.errors import MissingError, UserError
from headwater.train.artifacts import require_place_for_file


def run_trace(
    settings: TraceSettings, prompt: str | None = None, target: str | None = None, against: str | None = None
) -> list[dict[str, Any]]:
    """Traces queries; writes the results where the settings say, and returns them.

    Args:
        prompt, target: one question, instead of the file of queries.
        against: another target that it is held against.
    """
    if prompt is not None and target is not None:
        queries = [Query("query", prompt, target, against=against or "")]
    elif settings.queries:
        if settings.out and Path(settings.out).exists() and os.path.samefile(settings.out, settings.queries):
            raise UserError("the results would overwrite the queries", got=f"out={settings.out}", fix="change `out`")
        queries = read_queries(settings.queries)
    else:
        raise MissingError("there are no queries", fix="set queries=FILE.jsonl, or give --prompt and --target")
    if settings.out:
        require_place_for_file(settings.out, "out")
    with Attributor.open(
        settings.index,
        also=settings.also,
        weights=settings.weights,
        model=settings.model,
        layout=settings.parallel,
    ) as attributor:
        results = attributor.trace(queries, settings)
        if settings.out and attributor.world.is_main:
            write_results(settings.out, results)
    return results


def trace(index: str | os.PathLike[str], asked: Asked, **options: Any) -> list[dict[str, Any]]:
    """Traces queries or (prompt, target) pairs against one index; `options` are those of `TraceSettings`."""
    with Attributor.open(index) as attributor:
        return attributor.trace(asked, **options)
