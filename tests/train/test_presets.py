"""The presets: published parameter counts, models that really have them on each rank, and plans that hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from headwater.configs import load_config
from headwater.launch.machines.estimates import Layout, count_parameters
from headwater.launch.plan.report import load_plan, make_plan
from headwater.train.settings import PretrainSettings

from ..jobs import call
from .meta_counts import count

# The last two columns: GPUs of the smallest and of a large machine that the preset is meant for.
PRESETS = {
    "llama-160m": (162_417_408, 1, 64),
    "llama-1b": (1_235_814_400, 8, 128),
    "llama-3b": (3_212_749_824, 16, 256),
    "llama-8b": (8_030_261_248, 32, 1024),
}


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_the_published_models(name):
    settings = load_config(PretrainSettings, f"pretrain/{name}")
    assert count_parameters(settings.model, settings.model.vocab_size).total == PRESETS[name][0]
    assert settings.corpus.tokenizer.vocab_size == settings.model.vocab_size


@pytest.mark.parametrize("name", PRESETS)
def test_plan_accepts_them_with_room_to_spare(name):
    total, smallest, largest = PRESETS[name]
    for gpus in (smallest, largest):
        plan = make_plan(*load_plan(f"pretrain/{name}", [f"gpus={gpus}", "gpu=h100"]))
        assert plan.parameters.total == total
        assert plan.left > 0.1 * 79.6 * 2**30
    # About twenty tokens for each parameter, or as many as a well-trained model of its size saw.
    assert 15 < plan.tokens / total < 40
    assert plan.time.days < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama-160m", []),
        ("llama-1b", ["parallel.pipeline=2"]),
        ("llama-3b", ["parallel.tensor=2", "parallel.sequence=true"]),
        ("llama-8b", []),
    ],
)
def test_the_model_on_each_rank_has_as_many(name, overrides, tmp_path: Path):
    log = tmp_path / "log"
    assert call(count, f"pretrain/{name}", overrides, str(tmp_path), ranks=2, log=log) == 0, log.read_text()
    settings = load_config(PretrainSettings, f"pretrain/{name}", overrides)
    layout, parameters = Layout.of(settings, 2), count_parameters(settings.model, settings.model.vocab_size)
    whole: dict[str, list[int]] = {}
    for rank in range(2):
        noted = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        first, last = (rank == 0, rank == 1) if layout.pipeline == 2 else (True, True)
        assert noted["own"] == parameters.on_stage(layout, first, last)
        whole.update(noted["whole"])
    assert sum(math.prod(shape) for shape in whole.values()) == PRESETS[name][0]
