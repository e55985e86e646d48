"""Run under torchrun by test_gradients: the same rows from two ranks that share the model."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.settings import ProjectionSettings, TracedModelSettings
from headwater.train import parallel

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    from test_gradients import examples

    run, layout, out = sys.argv[1:]
    world = parallel.start(**{layout: 2}, threads=1)
    model = open_model(TracedModelSettings(run=run), world)
    rows = GradientCollector(model, ProjectionSettings(dims=8), "adam", "log_odds").rows(examples(2048))
    if world.is_main:
        torch.save(rows, out)
    parallel.stop()


main()
