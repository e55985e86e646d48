"""Losses, gradient norms, probes and final weights do not depend on how a run is laid out over processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headwater.train.artifacts import RunDir
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import KINDS, newest

from ..jobs import train


@dataclass(frozen=True)
class Layout:
    name: str
    ranks: int
    overrides: tuple[str, ...] = ()
    against: str = "one"
    """The run of one process that it is held against."""
    tolerance: float = 1e-5


TENSOR, PIPELINE = "parallel.tensor=2", "parallel.pipeline=2"
UNTIED = "model.tie_embeddings=false"
PRESETS = ("train.precision=bf16", "zero.stage=1", UNTIED)
"""What the presets for GPUs have in common: a number of eight bits moves a loss by some 1e-3 of itself."""
HEAD_NORMS = (
    *("model.qk_norm=true", "model.head_dim=10", "model.rope_scaling=linear"),
    *("train.z_loss=1.0e-3", "optimizer.no_decay=[embeddings,biases]", "optimizer.weight_decay=1.0"),
)
BIASES = ("model.qkv_bias=true", "model.rope_scaling=llama3", "model.rope_context=40")
ONE = {
    "one": (),
    "untied": (UNTIED,),
    "clipped": ("optimizer.clip=0.1",),
    "presets": PRESETS,
    "head norms": HEAD_NORMS,
    "biases": BIASES,
}
BF16 = 1e-2

LAYOUTS = [
    Layout("zero0", 1, ("zero.stage=0",)),
    Layout("zero2", 1, ("zero.stage=2",)),
    Layout("zero3", 1, ("zero.stage=3",)),
    Layout("micro-batch of 4", 1, ("train.micro_batch=4",)),
    Layout("recompute full", 1, ("train.recompute=full",)),
    Layout("recompute selective", 1, ("train.recompute=selective",)),
    Layout("tp2", 2, (TENSOR,)),
    Layout("tp2 zero0", 2, (TENSOR, "zero.stage=0", "optimizer.clip=0.1"), "clipped"),
    Layout("tp2 zero3", 2, (TENSOR, "zero.stage=3")),
    Layout("tp2 sequence", 2, (TENSOR, "parallel.sequence=true")),
    Layout("tp2 sequence, recompute full", 2, (TENSOR, "parallel.sequence=true", "train.recompute=full")),
    Layout("tp2 sequence untied", 2, (TENSOR, "parallel.sequence=true", UNTIED), "untied"),
    Layout("pp2", 2, (PIPELINE,)),
    Layout("pp2 zero0", 2, (PIPELINE, "zero.stage=0", "optimizer.clip=0.1"), "clipped"),
    Layout("pp2 untied, recompute full", 2, (PIPELINE, UNTIED, "train.recompute=full"), "untied"),
    Layout("pp2 clipped", 2, (PIPELINE, "optimizer.clip=0.1"), "clipped"),
    Layout("dp2", 2),
    Layout("dp2 zero0", 2, ("zero.stage=0",)),
    Layout("dp2 zero2 overlapped", 2, ("zero.stage=2", "zero.overlap_comm=true", "optimizer.clip=0.1"), "clipped"),
    Layout("dp2 zero3 untied, overlapped", 2, ("zero.stage=3", "zero.overlap_comm=true", UNTIED), "untied"),
    Layout("tp2 x pp2 sequence", 4, (TENSOR, PIPELINE, "parallel.sequence=true")),
    Layout("tp2 x dp2 clipped", 4, (TENSOR, "optimizer.clip=0.1"), "clipped"),
    Layout("pp2 x dp2 zero0", 4, (PIPELINE, "zero.stage=0")),
    Layout("tp2, head norms", 2, (TENSOR, *HEAD_NORMS), "head norms"),
    Layout("tp2 x pp2, head norms", 4, (TENSOR, PIPELINE, "parallel.sequence=true", *HEAD_NORMS), "head norms"),
    Layout("tp2 zero3, biases", 2, (TENSOR, "zero.stage=3", *BIASES), "biases"),
    Layout("presets: dp2", 2, PRESETS, "presets", BF16),
    Layout("presets: tp2 x dp2 sequence", 4, (*PRESETS, TENSOR, "parallel.sequence=true"), "presets", BF16),
    Layout("presets: pp2 x dp2", 4, (*PRESETS, PIPELINE), "presets", BF16),
]


@pytest.fixture(scope="module")
def one(fresh: Callable[[], Path], config: Path) -> dict[str, RunDir]:
    """The runs of one process."""
    runs = {}
    for name, overrides in ONE.items():
        runs[name] = RunDir.at(fresh())
        train([config, f"out={runs[name].path}", *overrides], log=runs[name].path / "log")
    return runs


def compare(got: RunDir, expected: RunDir, tolerance: float = 1e-5) -> None:
    """Raises if losses, norms, probes, ledger or the last checkpoint differ by more than the relative tolerance."""
    lines, others = read_metrics(got.metrics), read_metrics(expected.metrics)
    assert [line["step"] for line in lines] == [line["step"] for line in others] == list(range(1, 11))
    for line, other in zip(lines, others, strict=True):
        assert line["tokens"] == other["tokens"]
        for key in ("loss", "lr"):
            assert math.isclose(line[key], other[key], rel_tol=tolerance), (key, line, other)
        assert math.isclose(line["grad_norm"], other["grad_norm"], rel_tol=10 * tolerance), (line, other)
    one, other = newest(got.checkpoints), newest(expected.checkpoints)
    assert one is not None
    assert other is not None
    assert one.names == other.names
    for kind in KINDS:
        for name in one.names:
            a, b = one.tensor(kind, name).double(), other.tensor(kind, name).double()
            # Adam magnifies the noise of a gradient that is next to nothing, so norms are compared.
            # A bias, zero at first, is nothing but the steps that Adam made of such gradients.
            limit = (50 if name.endswith(".bias") else 1 if kind == "weight" else 20) * tolerance
            assert torch.linalg.vector_norm(a - b) <= limit * torch.linalg.vector_norm(b), (kind, name)
    probes, others_probes = pq.read_table(got.probes), pq.read_table(expected.probes)
    assert probes["step"] == others_probes["step"]
    assert probes["probe"] == others_probes["probe"]
    np.testing.assert_allclose(probes["logprob"], others_probes["logprob"], rtol=10 * tolerance)
    files = sorted(file.name for file in got.ledger.iterdir())
    assert files == sorted(file.name for file in expected.ledger.iterdir())
    for file in files:
        assert (got.ledger / file).read_bytes() == (expected.ledger / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_agrees_with_one_process(layout: Layout, one: dict[str, RunDir], fresh: Callable[[], Path], config: Path):
    run = RunDir.at(fresh())
    arguments = [config, f"out={run.path}", *layout.overrides]
    train(arguments, ranks=layout.ranks, log=run.path / "log")
    compare(run, one[layout.against], layout.tolerance)


def test_the_comparison_notices_a_difference(one: dict[str, RunDir]):
    """The negative control: clipping changes the weights, tying changes the names."""
    with pytest.raises(AssertionError):
        compare(one["clipped"], one["one"])
    with pytest.raises(AssertionError):
        compare(one["clipped"], one["one"], BF16)
    with pytest.raises(AssertionError):
        compare(one["untied"], one["one"])
