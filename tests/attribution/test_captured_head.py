"""Captured rows of the output head, against the dense formula in float64; settings that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headwater.attribution.models.headwater import HEAD_NAME
from headwater.attribution.rows.hooks import sign_parts
from headwater.configs import load_config
from headwater.configs.errors import ConfigError
from headwater.launch.bench.capture import Steps
from headwater.train import losses, parallel
from headwater.train.micro_batch import pack_sequences
from headwater.train.settings import CaptureSettings, ModelSettings, PretrainSettings, TrainSettings

V, WIDTH, HEAD = 96, 16, 5


@pytest.fixture(scope="module")
def world() -> Iterator[parallel.World]:
    yield parallel.start(threads=1)
    parallel.stop()


def settings_of(tied: bool, precision: str = "fp32", head: int = HEAD) -> PretrainSettings:
    shape = {"layers": 1, "hidden": WIDTH, "heads": 2, "kv_heads": 2, "ffn_hidden": 24, "vocab_size": V}
    train = TrainSettings(global_batch=3, micro_batch=1, precision=precision)
    settings = PretrainSettings(model=ModelSettings(**shape, tie_embeddings=tied), train=train)
    settings.callbacks.capture = CaptureSettings(proj=3, head=head)
    return settings


def dense_rows(states_Td: Tensor, weight_Vd: Tensor, batch: Any, lengths: list[int]) -> list[Tensor]:
    """Of each passage of a micro-batch the sum over its predictions of (p - e_y) h^T, projected, float64."""
    left_Vk = sign_parts(0, f"{HEAD_NAME}/out", V, HEAD, [(0, V)]).double()
    right_dk = sign_parts(0, f"{HEAD_NAME}/in", WIDTH, HEAD, [(0, WIDTH)]).double()
    pull_TV = torch.softmax(states_Td @ weight_Vd.T, dim=1)
    pull_TV[torch.arange(len(pull_TV)), batch.labels_T] -= 1
    pull_TV *= batch.weights_T[:, None]
    edges = [0, *np.cumsum(lengths).tolist()]
    return [
        (left_Vk.T @ pull_TV[start:stop].T @ states_Td[start:stop] @ right_dk).flatten()
        for start, stop in pairwise(edges)
    ]


@pytest.mark.parametrize(("tied", "precision"), [(True, "fp32"), (False, "fp32"), (False, "bf16")])
def test_rows_of_each_micro_batch(
    tied: bool, precision: str, world: parallel.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three the first predicts nothing and the second not every token, ten predictions at a time; an evaluation
    that comes before the rows are taken adds nothing. In bf16 autograd's gradients are added up beside it."""
    monkeypatch.setattr(losses, "_CHUNK", 10)
    steps = Steps(settings_of(tied, precision), world, tmp_path, seq_len=40, longest=16)
    gpt, capture = steps.engine.model, steps.capture
    masks = [np.zeros(40, dtype=bool), np.arange(40) % 3 > 0, None]
    sequences = [replace(each, counted=mask) for each, mask in zip(steps.rows, masks, strict=True)]
    batches = [pack_sequences([each]) for each in sequences]
    tokens = sum(int((batch.weights_T > 0).sum()) for batch in batches)
    rows: list[Tensor] = []
    monkeypatch.setattr(capture.means, "add", lambda passages, rows_ND, lr: rows.extend(rows_ND))
    states: list[Tensor] = []
    gpt.decoder.register_forward_hook(lambda module, inputs, out: states.append(out.detach().squeeze(1).double()))
    weight_Vd = gpt.head_weight.detach().double().clone()
    capture.attach()
    try:
        capture.before_step(steps.trainer, 1, sequences)
        result = steps.engine.step(batches, tokens)
        steps.engine.evaluate(batches[2])
        capture.after_step(steps.trainer, 1, sequences, result)
    finally:
        capture.detach()
    found: list[tuple[Tensor, Tensor]] = []
    for sequence, batch, states_Td in zip(sequences, batches, states, strict=False):
        expected = dense_rows(states_Td, weight_Vd, batch, sequence.lengths.tolist())
        found += [(rows[int(n)][capture.blocks :], each) for n, each in zip(sequence.passages, expected, strict=True)]
    assert sum(bool(expected.any()) for _, expected in found) >= 6
    for got, expected in found:
        assert float((got - expected).norm()) <= (1e-4 if precision == "fp32" else 0.02) * float(expected.norm())
    (one, _), (_, other) = found[-2:]
    assert float((one - other).norm()) > 0.1 * float(other.norm())


def test_without_a_head_a_checkpoint_says_what_it_did_before_there_were_any(
    world: parallel.World, tmp_path: Path
) -> None:
    """So runs and indexes of then go on, and are opened."""
    capture = Steps(settings_of(True, head=0), world, tmp_path, seq_len=40, longest=16).capture
    note = capture._note()
    assert note["projection"] == {"dims": 3, "modules": {}, "seed": 0}
    assert len(note["layout"]) == 4
    assert HEAD_NAME not in capture.parts


def test_a_whole_curvature_of_a_wide_head_is_refused() -> None:
    given = ["callbacks.capture.enabled=true", "callbacks.capture.head=129"]
    load_config(PretrainSettings, "pretrain/tiny", given)
    with pytest.raises(ConfigError, match=r"callbacks\.capture\.head = 129: .* curvature=full.*head=0"):
        load_config(PretrainSettings, "pretrain/tiny", [*given, "callbacks.capture.curvature=full"])
