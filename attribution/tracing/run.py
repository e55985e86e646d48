"""`headwater trace`: from queries to passages, and the published results.

headwater trace trace/default index=runs/demo/index/headwater queries=q.jsonl out=t.jsonl
headwater trace trace/default index=runs/demo/index/headwater rows=q.safetensors out=t.jsonl
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
from headwater.attribution.tracing.saved_rows import is_rows_file
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
    queries = None
    if prompt is not None and target is not None:
        queries = [Query("query", prompt, target, against=against or "")]
    elif settings.queries or settings.rows:
        for file in filter(None, (settings.queries, settings.rows)):
            if settings.out and Path(settings.out).exists() and os.path.samefile(settings.out, file):
                raise UserError(
                    "the results would overwrite the queries", got=f"out={settings.out}", fix="change `out`"
                )
        queries = read_queries(settings.queries) if settings.queries else None
    else:
        raise MissingError(
            "there are no queries", fix="set queries=FILE.jsonl or rows=FILE, or give --prompt and --target"
        )
    for key in ("out", "scores"):
        if getattr(settings, key):
            require_place_for_file(getattr(settings, key), key)
    with Attributor.open(
        settings.index,
        also=settings.also,
        weights=settings.weights,
        model=settings.model,
        layout=settings.parallel,
        models=wants_models(settings, prompt),
    ) as attributor:
        asked: Asked = queries or []
        if settings.rows and prompt is None:
            asked = attributor.saved(settings.rows, queries)
        results = attributor.trace(asked, settings)
        if settings.out and attributor.world.is_main:
            write_results(settings.out, results)
    return results


def wants_models(settings: TraceSettings, prompt: str | None) -> bool:
    """Whether something is asked that is not in files of rows."""
    text = prompt is not None or not settings.rows or (settings.task and not is_rows_file(settings.task))
    return bool(text or settings.tokens or settings.rescore == "recompute")


def trace(index: str | os.PathLike[str], asked: Asked, **options: Any) -> list[dict[str, Any]]:
    """Traces queries or (prompt, target) pairs against one index; `options` are those of `TraceSettings`."""
    with Attributor.open(index) as attributor:
        return attributor.trace(asked, **options)
