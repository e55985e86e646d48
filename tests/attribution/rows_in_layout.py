"""What each rank does in test_gradients: the same rows from two ranks that share the model."""

from __future__ import annotations

import torch

from headwater.attribution.models.base import Example
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.settings import ProjectionSettings, TracedModelSettings
from headwater.train import parallel


def rows_in_layout(run: str, layout: str, asked: list[Example], out: str) -> None:
    world = parallel.start(**{layout: 2}, threads=1)
    model = open_model(TracedModelSettings(run=run), world)
    rows = GradientCollector(model, ProjectionSettings(dims=8, head=11), "adam", "log_odds").rows(asked)
    if world.is_main:
        torch.save(rows, out)
