"""The trainer against a bare PyTorch loop, with and without steps that are skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.train.artifacts import RunDir
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import newest

from ..jobs import call, train
from .poison import bare_loop, poisoned

SKIPPED = [1, 4, 5]
CLIP = "optimizer.clip=0.5"


def bare(directory: Path, config: Path, skipped: list[int], *overrides: str) -> Path:
    arguments, log = [str(config), f"out={directory}", CLIP, *overrides], directory / "log"
    assert call(bare_loop, arguments, skipped, str(directory), ranks=1, log=log) == 0, log.read_text()
    return directory


@pytest.fixture(scope="module")
def skipping(fresh: Callable[[], Path], config: Path) -> Path:
    return bare(fresh(), config, SKIPPED)


def compare(run: RunDir, expected: Path, skipped: list[int]) -> None:
    reference = json.loads((expected / "bare.json").read_text())
    lines = read_metrics(run.metrics)
    assert [line["step"] for line in lines if line.get("skipped")] == skipped
    for line, loss, norm in zip(lines, reference["losses"], reference["norms"], strict=True):
        if line["step"] not in skipped:
            assert math.isclose(line["loss"], loss, rel_tol=1e-5), line
            assert math.isclose(line["grad_norm"], norm, rel_tol=1e-4), line
    weights, checkpoint = torch.load(expected / "weights.pt"), newest(run.checkpoints)
    assert checkpoint is not None
    assert checkpoint.meta["updates"] == len(lines) - len(skipped)
    for name in checkpoint.names:
        weight = checkpoint.tensor("weight", name)
        assert (weight - weights[name]).norm() <= 1e-5 * weights[name].norm(), name


@pytest.mark.slow
def test_the_trainer_is_the_bare_loop(fresh, config):
    expected = bare(fresh(), config, [])
    run = RunDir.at(fresh())
    train([config, f"out={run.path}", CLIP], log=run.path / "log")
    compare(run, expected, [])


CASES = [
    ("nan", 1, ["zero.stage=0"]),
    ("nan", 1, []),
    ("nan", 1, ["zero.stage=2"]),
    ("nan", 1, ["zero.stage=3"]),
    ("inf", 2, ["zero.stage=2"]),
    ("-inf", 2, ["zero.stage=3"]),
    ("nan", 2, ["parallel.pipeline=2"]),
    ("nan", 2, ["parallel.tensor=2", "parallel.sequence=true"]),
    ("gradient", 1, ["zero.stage=0"]),
    ("gradient", 1, []),
    ("gradient", 2, ["zero.stage=2"]),
    ("gradient", 1, ["zero.stage=3"]),
    ("gradient", 2, ["parallel.pipeline=2"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "ranks", "overrides"), CASES, ids=lambda v: " ".join(v) if type(v) is list else v)
def test_a_skipped_step_leaves_nothing_behind(where, ranks, overrides, skipping, fresh, config):
    """Neither weights nor moments change, and its gradients are not in those of the next step."""
    run = RunDir.at(fresh())
    arguments = [str(config), f"out={run.path}", CLIP, *overrides]
    log = run.path / "log"
    assert call(poisoned, arguments, where, SKIPPED, ranks=ranks, log=log) == 0, log.read_text()
    compare(run, skipping, SKIPPED)


@pytest.mark.slow
def test_too_many_in_a_row_end_the_run(fresh, config):
    run = RunDir.at(fresh())
    log = run.path / "log"
    arguments = [str(config), f"out={run.path}", "train.max_skips=2"]
    assert call(poisoned, arguments, "nan", [2, 3, 5, 6, 7, 8], ranks=1, log=log) != 0
    assert "training has diverged: 3 steps in a row were skipped, the last is step 7" in log.read_text()
    assert [line["step"] for line in read_metrics(run.metrics)][-1] in (6, 7)


@pytest.mark.slow
def test_a_spike_is_left_out_once_the_usual_loss_is_known(tmp_path, config):
    """Three times the loss: taken while fewer than 20 are known, left out afterwards."""
    steps, skipped = [5, 22, 24], [22, 24]
    (tmp_path / "bare").mkdir()
    expected = bare(tmp_path / "bare", config, skipped, "train.steps=25")
    reference = json.loads((expected / "bare.json").read_text())
    reference["losses"][4] *= 3
    (expected / "bare.json").write_text(json.dumps(reference))
    run, log = RunDir.at(tmp_path / "run"), tmp_path / "log"
    arguments = [str(config), f"out={run.path}", CLIP, "train.steps=25", "train.spike=2"]
    assert call(poisoned, arguments, "3 x", steps, ranks=1, log=log) == 0, log.read_text()
    assert len(read_metrics(run.metrics)) == 25
    compare(run, expected, skipped)


def test_a_spike_is_measured_against_the_median():
    """With `spike` 3: not before 20 losses are known, then beyond three times their median."""
    from collections import deque
    from types import SimpleNamespace

    from headwater.train.trainer import Trainer

    trainer = SimpleNamespace(settings=SimpleNamespace(train=SimpleNamespace(spike=3.0)), _losses=deque(maxlen=100))
    accept = lambda loss: Trainer._accept(trainer, loss)  # noqa: E731
    assert all(accept(loss) for loss in [1.0, 50.0, *np.linspace(1, 2, 18)])
    median = float(np.median(list(trainer._losses)))
    assert accept(2.9 * median)
    assert not accept(3.3 * median)
    assert not accept(math.nan)
    assert not accept(math.inf)
    assert len(trainer._losses) == 21
    trainer.settings.train.spike = 0.0
    assert accept(1e9)
