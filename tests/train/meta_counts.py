"""What ranks do in test_presets: build their part of a large model without memory, and count its parameters."""

from __future__ import annotations

import json
from pathlib import Path


def count(preset: str, overrides: list[str], directory: str) -> None:
    """Writes this rank's number of parameters, and the canonical names with their whole shapes."""
    import dataclasses
    from unittest import mock

    import torch

    from headwater.configs import load_config
    from headwater.train import model, parallel
    from headwater.train.settings import PretrainSettings

    settings = load_config(PretrainSettings, preset, overrides)
    layout = settings.parallel
    world = parallel.start(tensor=layout.tensor, pipeline=layout.pipeline)
    meta = torch.device("meta")
    with meta, mock.patch.object(model, "initialize"):
        world = dataclasses.replace(world, device=meta)
        gpt = model.build_model(settings.model, settings.train, world, seed=0, sequence=layout.sequence)
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in gpt.parameters())
    found = {part.name: part.shape for part in model.parameter_parts(gpt)}
    own = sum(parameter.numel() for parameter in gpt.parameters())
    (Path(directory) / f"rank-{world.rank}.json").write_text(json.dumps({"own": own, "whole": found}))
