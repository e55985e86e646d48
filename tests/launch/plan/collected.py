"""What test_indexing.py runs in a process of its own: rows made, rows scanned, and the bytes that they had at most."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MARK = 12_345_676
"""Bytes of a tensor that is made when what is measured begins: nothing else is so large."""


def peak_of(action: Callable[[], Callable[[], Any]]) -> int:
    """The most bytes of tensors that are alive at once while what `action` returns is run; what it makes counts."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        measured = action()
        mark = torch.empty(MARK, dtype=torch.uint8)
        measured()
    live = peak = 0
    begun = False
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            begun = begun or event.nbytes() == MARK
            peak = max(peak, live) if begun else peak
    return peak - mark.nbytes


def collecting(overrides: list[str], correction: str, projection: int, batch_tokens: int) -> list[int]:
    """(measured, planned) for some passages of the longest length."""
    import numpy as np
    import torch

    from headwater.attribution.models.base import Example, TracedModel, freeze
    from headwater.attribution.models.headwater import HeadwaterModel
    from headwater.attribution.rows.collector import GradientCollector, collect
    from headwater.attribution.settings import ProjectionSettings
    from headwater.configs import load_config
    from headwater.launch.machines.estimates import Layout
    from headwater.launch.machines.indexing import collecting_of
    from headwater.train.model import build_model, parameter_parts
    from headwater.train.parallel import joined
    from headwater.train.settings import PretrainSettings

    settings = load_config(PretrainSettings, None, overrides)
    world = joined()
    assert world is not None
    length, passages = settings.corpus.max_tokens, 48
    widths: list[int] = []

    def made() -> Callable[[], Any]:
        model = HeadwaterModel.__new__(HeadwaterModel)
        TracedModel.__init__(model)
        model.world, model.device, model.eps, model.vocabulary = world, world.device, 1e-8, settings.model.vocab_size
        model.gpt = build_model(settings.model, settings.train, world, seed=0)
        freeze(model.gpt)
        shapes = {part.name: tuple(part.shape) for part in parameter_parts(model.gpt)}
        weights = {name: {"shape": list(shape)} for name, shape in shapes.items()}
        meta = {"tensors": {"weight": weights}, "optimizer": {"beta2": 0.9}, "updates": 3}
        checkpoint: Any = SimpleNamespace(meta=meta, tensor=lambda kind, name: torch.rand(shapes[name]))
        model.checkpoint = checkpoint
        collector = GradientCollector(model, ProjectionSettings(dims=projection), correction, "log_odds")
        widths.append(collector.layout.dims)
        examples = [Example(np.random.default_rng(n).integers(1, 99, length)) for n in range(passages)]
        return lambda: collect(collector, examples, batch_tokens)

    measured = peak_of(made)
    layout, vocab_size = Layout.of(settings, 1), settings.model.vocab_size
    plan = collecting_of(settings, layout, vocab_size, projection, batch_tokens, correction, fused=False)
    # On a CPU the rows that are in hand stand beside the rest.
    return [measured, plan.device + passages * widths[0] * 4]


def searching(side: int, queries: int) -> list[int]:
    """(measured, planned) of a scan of an index of eight modules."""
    from headwater.attribution.index.reader import open_index
    from headwater.attribution.search.options import ScanOptions, Source
    from headwater.attribution.search.scan import scan
    from headwater.launch.bench.search import build_index
    from headwater.launch.bench.synthetic import RowMaker
    from headwater.launch.machines.indexing import searching_of

    with tempfile.TemporaryDirectory() as folder:
        build_index(Path(folder) / "index", 600, 8 * side**2, ["int8"])
        index = open_index(Path(folder) / "index")

        def made() -> Callable[[], Any]:
            source = Source(index, RowMaker(index.layout).rows(queries, 10_000))
            return lambda: scan([source], ScanOptions(top_k=10, codec="int8"))

        return [peak_of(made), searching_of(8, side, queries).total]


def measured_and_planned(
    models: Sequence[tuple[list[str], str, int, int]], scans: Sequence[tuple[int, int]], out: Path
) -> None:
    """Writes (measured, planned) bytes of each."""
    from headwater.train.parallel import start

    start(threads=1)
    pairs = [collecting(*each) for each in models]
    out.write_text(json.dumps([pairs, [searching(*each) for each in scans]]))
