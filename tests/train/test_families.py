"""Mistral, Qwen2, Qwen3 and Llama 3.1's positions: transformers' logits, weights, losses and gradients, both ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater.attribution.models.base import Example
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.rows.hooks import sign_parts
from headwater.attribution.settings import ProjectionSettings
from headwater.configs import load_config
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import open_checkpoint
from headwater.train.compat import declare_torchvision_operators
from headwater.train.huggingface.export import export_llama
from headwater.train.huggingface.importing import import_llama
from headwater.train.loading import load_weights
from headwater.train.model import build_model
from headwater.train.settings import PretrainSettings, TrainSettings
from headwater.train.stream.stream import open_stream

from ..jobs import train
from .test_huggingface import logits_of

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "vocab_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0},
    "original_max_position_embeddings": 24,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3.1": ("LlamaConfig", {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "llama, linear": ("LlamaConfig", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama, wide heads": ("LlamaConfig", {"head_dim": 20}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 10, "tie_word_embeddings": True}),
}


def theirs(kind: str) -> Any:
    """A random model of transformers, with norms that are not one and biases that are not zero."""
    declare_torchvision_operators()
    import transformers

    name, changes = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SMALL, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            low = -0.5 if name.endswith("bias") else 0.5
            torch.nn.init.uniform_(parameter, low, low + 1)
    return model


def imported(kind: str, directory: Path) -> tuple[Any, Path]:
    """A model of transformers, and the checkpoint that was made of it."""
    model = theirs(kind)
    model.save_pretrained(directory / "hf")
    import_llama(directory / "hf", directory / "checkpoint")
    return model, directory / "checkpoint"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_weights_are_transformers_both_ways(kind: str, world: Any, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model, place = imported(kind, tmp_path)
    checkpoint = open_checkpoint(place)
    checkpoint.verify()
    settings = load_config(PretrainSettings, place / "model.yaml").model
    gpt = build_model(settings, TrainSettings(), world, seed=5)
    load_weights(gpt, checkpoint)
    tokens = torch.randint(384, (61,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]
    torch.testing.assert_close(logits_of(gpt, tokens), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    export_llama(place, tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", local_files_only=True).eval()
    assert type(back) is type(model) or kind == "mistral", "which is a Llama model without a window"
    with torch.no_grad():
        torch.testing.assert_close(back(tokens[None]).logits[0], expected, rtol=1e-4, atol=1e-4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    # Without what sets the family apart the logits are others.
    settings.rope_scaling, settings.rope_base = "none", settings.rope_base if kind != "llama 3.1" else 10000.0
    if kind in ("llama 3.1", "llama, linear"):
        plain = build_model(settings, TrainSettings(), world, seed=5)
        load_weights(plain, checkpoint)
        assert float((logits_of(plain, tokens) - expected).abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama 3.1"])
def test_rows_are_projections_of_transformers_gradients(kind: str, world: Any, tmp_path: Path):
    model, place = imported(kind, tmp_path)
    ours = HeadwaterModel(open_checkpoint(place), world)
    collector = GradientCollector(ours, ProjectionSettings(dims=6), "none", "cross_entropy")
    tokens = np.random.default_rng(1).integers(0, 384, size=23)
    row = collector.rows([Example(tokens)])[0]
    ids = torch.from_numpy(tokens)[None]
    (model(input_ids=ids, labels=ids).loss * 22).backward()
    names = {"self_attention.linear_proj": "self_attn.o_proj", "mlp.linear_fc2": "mlp.down_proj"}
    for number in range(2):
        for name, other in names.items():
            site = f"decoder.layers.{number}.{name}"
            gradient_OI = model.get_parameter(f"model.layers.{number}.{other}.weight").grad
            outputs, inputs = gradient_OI.shape
            left = sign_parts(0, f"{site}/out", outputs, 6, [(0, outputs)]).float()
            right = sign_parts(0, f"{site}/in", inputs, 6, [(0, inputs)]).float()
            expected = (left.T @ gradient_OI @ right).flatten()
            torch.testing.assert_close(row[collector.spans[site].slice], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_training_goes_on_as_transformers_would(kind: str, fresh: Any, config: Path, tmp_path: Path):
    model, place = imported(kind, tmp_path)
    run = fresh()
    lr = [f"optimizer.{each}" for each in ("lr=1e-3", "schedule=constant", "warmup=0", "clip=0", "weight_decay=0.1")]
    base = load_config(PretrainSettings, place / "model.yaml").model
    shape = [f"model.{name}={getattr(base, name)}" for name in (
        *("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn_hidden", "qkv_bias", "qk_norm"),
        *("tie_embeddings", "rope_base", "norm_eps"),
    )]  # fmt: skip
    train([config, f"out={run}", f"model.init_from={place}", *shape, *lr], log=run / "log")
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
    settings = load_config(PretrainSettings, run / "config.yaml")
    stream = open_stream(RunDir.at(run), global_batch=settings.train.global_batch, seed=settings.seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-3, betas=(settings.optimizer.beta1, settings.optimizer.beta2), eps=settings.optimizer.eps,
    )  # fmt: skip
    for step, ours in enumerate(losses):
        total, count = torch.zeros(()), 0
        for row in stream.sequences(step, 0, settings.train.global_batch):
            for passage in np.split(row.tokens[: row.lengths.sum()], row.lengths.cumsum()[:-1]):
                tokens = torch.from_numpy(passage.astype(np.int64))
                logits = model(tokens[None]).logits[0, :-1]
                total = total + torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")
                count += len(tokens) - 1
        assert math.isclose(ours, float(total.detach()) / count, rel_tol=2e-4), (step, ours)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert losses[-1] < losses[0]
