"""Weight decay: of two models that differ in what is decayed, after one update, every parameter by just that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwater.configs import load_config
from headwater.configs.errors import ConfigError
from headwater.train.engine import Engine
from headwater.train.model import build_model, parameter_parts
from headwater.train.settings import PretrainSettings

from .reduced import MODEL, batches, settings

LR, DECAY = 1e-3, 0.5
KINDS = ("norms", "biases", "embeddings", "head")


def updated(world, no_decay: tuple[str, ...], tied: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Every parameter before and after one update, float64."""
    wanted = settings(1)
    wanted.train.precision = "fp32"
    wanted.optimizer.weight_decay, wanted.optimizer.no_decay = DECAY, list(no_decay)
    model = build_model(replace(MODEL, tie_embeddings=tied, qkv_bias=True), wanted.train, world, seed=1)
    engine = Engine(model, wanted, world)
    engine.set_lr(LR)
    before = {part.name: part.parameter.detach().double().clone() for part in parameter_parts(model)}
    assert not engine.step(batches(), 100).skipped
    return before, {part.name: part.parameter.detach().double() for part in parameter_parts(model)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_named_is_not_decayed(world, kind: str, tied: bool) -> None:
    before, spared = updated(world, (kind,), tied)
    _, every = updated(world, (), tied)
    names = {
        "norms": [name for name in before if "layernorm" in name],
        "biases": [name for name in before if name.endswith("linear_qkv.bias")],
        "embeddings": ["embedding.word_embeddings.weight"],
        "head": [] if tied else ["output_layer.weight"],
    }[kind]
    for name, value in before.items():
        lost = LR * DECAY * value if name in names else torch.zeros_like(value)
        torch.testing.assert_close(spared[name] - every[name], lost, rtol=0, atol=2e-7)
    if names and kind != "biases":  # biases begin at zero, where decay is none
        assert max(float((LR * DECAY * before[name]).abs().max()) for name in names) > 1e-5


def test_what_cannot_be_left_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="no_decay"):
        load_config(PretrainSettings, "pretrain/tiny", ["optimizer.no_decay=[gates]"])
    with pytest.raises(ConfigError, match="z_loss"):
        load_config(PretrainSettings, "pretrain/tiny", ["train.z_loss=1e-4", "callbacks.capture.enabled=true"])
