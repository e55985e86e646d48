"""Speeds between step ends by a clock that the test moves, operations counted by hand, and numbers that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headwater.train.callbacks import metrics as module
from headwater.train.callbacks.metrics import Metrics, operations, read_metrics, whole_matrices
from headwater.train.engine import StepResult
from headwater.train.micro_batch import pairs_of
from headwater.train.model import build_model
from headwater.train.settings import ModelSettings, PretrainSettings, TrainSettings
from headwater.train.stream.stream import TrainingSequence
from headwater.train.trainer import Trainer

MODEL = ModelSettings(layers=2, hidden=32, heads=4, kv_heads=2, ffn_hidden=48, vocab_size=128)


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def trainer(spent: dict[str, float] | None = None) -> SimpleNamespace:
    world = SimpleNamespace(is_main=True, size=2, pipeline=1)
    gone = dict(spent or {})

    def take() -> dict[str, float]:
        taken = dict(gone)
        gone.clear()
        return taken

    settings = PretrainSettings(model=MODEL)
    return SimpleNamespace(
        **{"world": world, "settings": settings, "pairs": 50, "last_step": 9, "lr": lambda step: 0.1},
        **{"take_spent": take, "spent": gone, "notes": {}},
    )


def begun(path: Path, looked_at: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, **given: float) -> Metrics:
    monkeypatch.setattr(module, "whole_matrices", lambda _: 1000)
    callback = Metrics(path, None, **{"every": 1, "peak_tflops": 0.0, **given})
    callback.start(looked_at, 0)
    return callback


def test_speed_is_measured_between_step_ends(tmp_path, clock, monkeypatch):
    """What a run waits for between two updates counts, and the line says how much of it was what."""
    run = trainer({"data_s": 0.25})
    callback = begun(tmp_path / "metrics.jsonl", run, monkeypatch, peak_tflops=1e-6)
    clock.now += 2
    callback.after_step(run, 1, [], StepResult(1.0, 100, 1.0))
    run.spent.update(gone := {"data_s": 0.5, "probe_s": 1.0, "checkpoint_s": 1.5})
    clock.now += 5
    callback.after_step(run, 2, [], StepResult(1.0, 100, 1.0))
    callback.close()
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["tokens_per_s"], first["data_s"], "probe_s" in first) == (50.0, 0.25, False)
    assert second["tokens_per_s"] == 20.0
    assert {name: second[name] for name in gone} == gone
    # 6 x 1000 x 100 for the matrices, 12 x 2 layers x 32 x 50 for attention, on two ranks of 1e6 operations a second.
    assert second["mfu"] == pytest.approx((600_000 + 38_400) / 5 / 2e6)


def test_a_line_covers_the_steps_since_the_one_before(tmp_path, clock, monkeypatch):
    run = trainer()
    callback = begun(tmp_path / "metrics.jsonl", run, monkeypatch, every=4)
    for step in range(1, 10):
        clock.now += step
        callback.after_step(run, step, [], StepResult(1.0, 10 * step, 1.0))
    callback.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 8, 9]
    assert [line["tokens_per_s"] for line in lines] == [10.0, 10.0, 10.0]


def test_what_is_not_finite_is_null(tmp_path, clock, monkeypatch):
    run, path = trainer(), tmp_path / "metrics.jsonl"
    callback = begun(path, run, monkeypatch)
    for step, loss in enumerate((math.nan, math.inf, 2.0), start=1):
        clock.now += 1
        callback.after_step(run, step, [], StepResult(loss, 5, math.nan, skipped=loss != 2))
    callback.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, None, 2.0]
    read = read_metrics(path)
    assert math.isnan(read[0]["loss"])
    again = begun(path, run, monkeypatch)  # what is gone on with is written as it was
    again.close()
    assert [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()] == []
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    callback = Metrics(path, None, every=1, peak_tflops=0.0)
    callback.start(run, 3)
    callback.close()
    assert [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()] == lines


def test_pairs_are_those_within_passages():
    lengths = np.array([3, 1, 4], dtype=np.int32)
    sequence = TrainingSequence(np.zeros(16, np.int64), lengths, np.arange(3), np.zeros(3, bool), 0)
    inside = [(a, b) for start, length in ((0, 3), (3, 1), (4, 4)) for a in range(length) for b in range(a + 1)]
    assert pairs_of(sequence) == len(inside) == 17


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_of_the_products(world, tied):
    """Against the shapes of every product of the forward pass: matrices by tokens, scores and mixing by pairs."""
    model = ModelSettings(**{**{k: getattr(MODEL, k) for k in MODEL.__slots__}, "tie_embeddings": tied})
    gpt = build_model(model, TrainSettings(), world, seed=0)
    looked_at = SimpleNamespace(engine=SimpleNamespace(model=gpt), world=world)
    matrices, tokens, pairs = whole_matrices(looked_at), 7, 20
    layer = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48
    assert matrices == 2 * layer + 128 * 32
    forward = 2 * tokens * matrices
    forward += sum(2 * 2 * 8 * pairs for _ in range(model.heads * model.layers))  # heads of 8: scores, then mixing
    assert operations(model, matrices, tokens, pairs) == 3 * forward


def test_time_beside_updates_is_counted_by_name(monkeypatch):
    from headwater.train import trainer as trainer_module

    clock, run = Clock(), Trainer.__new__(Trainer)
    monkeypatch.setattr(trainer_module, "time", clock)
    run._spent, run.spent_in_all = {}, {}
    for seconds in (2.0, 3.0):
        with run.spends("data_s"):
            clock.now += seconds
    assert run.take_spent() == {"data_s": 5.0}
    assert run.take_spent() == {}
    assert run.spent_in_all == {"data_s": 5.0}
