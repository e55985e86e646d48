"""Every stage on a device that refuses to be mixed with the CPU, with the same results as on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headwater.attribution import Attributor, Query, open_index
from headwater.attribution.capture.visits import read_visits
from headwater.attribution.curvature.sums import SUMS
from headwater.attribution.evaluation.evaluate import evaluate
from headwater.attribution.index.build import build_index
from headwater.attribution.models.base import Example
from headwater.attribution.models.headwater import HeadwaterModel, pack
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows import hooks
from headwater.attribution.rows.collector import GradientCollector, collect
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.settings import (
    EvaluateSettings,
    IndexSettings,
    ProjectionSettings,
    TailPatchSettings,
    TracedModelSettings,
)
from headwater.attribution.tracing.continuing import continuation
from headwater.train import parallel
from headwater.train.artifacts import RunDir, read_json
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.losses import LOSSES
from headwater.train.model import Batch

from ..jobs import Job
from . import rehearsed
from .pretended import Mixed, Pretended, here
from .rehearsed import rehearsal

ROOT = Path(__file__).resolve().parents[2]
ASKED = [("The capital of Peru is", "Lima"), ("The river", "is long")]
TRAINING = (
    "train.steps=12",
    "train.hard_stop=3",
    "train.threads=1",
    "callbacks.metrics.tensorboard=false",
    "callbacks.capture.enabled=true",
    "callbacks.capture.proj=7",
    "callbacks.capture.head=5",
    "callbacks.capture.codecs=[fp32]",
    "callbacks.capture.mode=visits",
)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def passages(count: int = 5, seed: int = 0) -> list[Example]:
    draw = np.random.default_rng(seed)
    return [Example(draw.integers(1, 250, size=length)) for length in draw.integers(4, 40, size=count)]


def rows_of(settings: TracedModelSettings, correction: str = "none") -> Tensor:
    """Rows of some passages, one by one and token by token too."""
    world = parallel.start(threads=1)
    try:
        model = open_model(settings, world)
        collector = GradientCollector(model, ProjectionSettings(dims=6), correction, "log_odds")
        rows_ND = collect(collector, passages(), 64)
        rows_TD = collector.token_rows(passages()[0])
        return torch.cat([rows_ND, rows_TD])
    finally:
        parallel.stop()


@pytest.mark.parametrize("correction", ["none", "adafactor"])
def test_rows(tiny_run: Path, correction: str) -> None:
    settings = TracedModelSettings(run=str(tiny_run))
    expected = rows_of(settings, correction)
    with rehearsal():
        got = rows_of(settings, correction)
    assert relative(got, expected) < 1e-5


def test_rows_of_a_hugging_face_model(tiny_llama: Path) -> None:
    settings = TracedModelSettings(path=str(tiny_llama))
    expected = rows_of(settings)
    with rehearsal():
        got = rows_of(settings)
    assert relative(got, expected) < 1e-5


def collector_on(device: Pretended, run: Path) -> GradientCollector:
    model = open_model(TracedModelSettings(run=str(run)), parallel.start(threads=1))
    return GradientCollector(model, ProjectionSettings(dims=6), "adafactor", "log_odds")


@pytest.fixture
def job() -> Iterator[None]:
    """Process groups are left when the test is over."""
    yield
    parallel.stop()


def test_a_batch_of_rows_is_one_copy(device: Pretended, tiny_run: Path, job: None) -> None:
    collector = collector_on(device, tiny_run)
    collector.rows(passages())
    device.forget()
    rows_ND = collector.rows(passages())
    assert device.to_host == [tuple(rows_ND.shape)]
    assert device.waits == []


def test_a_pass_waits_for_nothing(device: Pretended, tiny_run: Path, job: None) -> None:
    """Forward, loss and backward pass of a batch that was read ahead."""
    model = open_model(TracedModelSettings(run=str(tiny_run)), parallel.start(threads=1))
    assert isinstance(model, HeadwaterModel)
    model.gpt.requires_grad_(True)
    for loss in LOSSES:
        model.gpt.loss_kind = loss
        device.forget()
        batch = pack(passages())[0].pinned().to(here())
        assert all(pinned for _, pinned in device.to_device)
        model.gpt.run(batch)[0].backward()
        device.forget()
        model.gpt.run(batch)[0].backward()
        assert (device.waits, device.to_host, device.to_device) == ([], [], [])


def test_curvature_of_rows_that_stayed_there(device: Pretended) -> None:
    layout = RowLayout([("a", 3, 4), ("b", 5, 2)])
    rows_ND = torch.randn(300, layout.dims)
    for kind, sums in SUMS.items():
        here_, there = sums(layout), sums(layout)
        here_.add(rows_ND)
        there.add(rows_ND.to(here()))
        whitening = there.whitening(0.1)
        assert relative(whitening.apply(rows_ND), here_.whitening(0.1).apply(rows_ND)) < 1e-5, kind
        assert device.has(whitening.apply(rows_ND.to(here())))


@pytest.mark.parametrize("correction", ["adam", "adafactor"])
def test_rows_made_in_another_thread(device: Pretended, tiny_run: Path, job: None, correction: str) -> None:
    """As autograd does on a GPU; Triton asks for memory by a function that each thread is told for itself."""
    settings = TracedModelSettings(run=str(tiny_run), precision="bf16")  # in fp32 there are no descriptors
    model = open_model(settings, parallel.start(threads=1))
    collector = GradientCollector(model, ProjectionSettings(dims=8), correction, "log_odds")
    with ThreadPoolExecutor(1) as pool:
        rows_ND = pool.submit(collector.rows, passages()).result()
    assert relative(rows_ND, collector.rows(passages())) < 1e-6


@pytest.fixture(scope="module")
def index(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that was made on the CPU, in a copy of the tiny run."""
    run = tmp_path_factory.mktemp("device") / "run"
    shutil.copytree(tiny_run, run)
    return build_index(index_settings(run))


def index_settings(run: Path, out: str = "") -> IndexSettings:
    return IndexSettings(
        model=TracedModelSettings(run=str(run)),
        out=out,
        correction="adafactor",
        projection=ProjectionSettings(dims=6),
        codecs=["fp32"],
        shard_rows=128,
    )


def require_same_index(made: Path, expected: Path) -> None:
    got, wanted = (each.fields("fp32", 0, each.passages) for each in (open_index(made), open_index(expected)))
    assert relative(got["row"], wanted["row"]) < 1e-4
    assert relative(got["raw_norm"], wanted["raw_norm"]) < 1e-5


def test_an_index(device: Pretended, index: Path, tmp_path: Path) -> None:
    require_same_index(build_index(index_settings(index.parents[1], str(tmp_path / "index"))), index)


def test_a_trace(index: Path) -> None:
    asked = [Query("a", *ASKED[0]), Query("b", *ASKED[1], against="is short")]
    options: dict[str, Any] = {"top_k": 4, "tokens": True, "rescore": "recompute", "curvature": "train"}
    with Attributor.open(index) as attributor:
        expected = attributor.trace(asked, **options)
    with rehearsal(), Attributor.open(index) as attributor:
        got = attributor.trace(asked, **options)
        told = [(p.text, p.prob) for p in continuation(attributor.opened[0], "The", 3)]
    assert len(told) == 3
    for one, other in zip(got, expected, strict=True):
        assert one["proponent_ids"] == other["proponent_ids"]
        assert one["proponent_scores"] == pytest.approx(other["proponent_scores"], rel=1e-4)


def test_an_evaluation(index: Path) -> None:
    """Rankings and tail-patch."""
    run = index.parents[1]
    settings = EvaluateSettings(run=str(run), tail_patch=TailPatchSettings(queries=2, top=2))
    evaluate(settings)
    expected = read_json(run / "evaluation/tail_patch.json")["rise"]
    with rehearsal():
        evaluate(settings)
    got = read_json(run / "evaluation/tail_patch.json")["rise"]
    assert got.keys() == expected.keys()
    for method, rises in got.items():
        assert rises == pytest.approx(expected[method], rel=1e-2, abs=1e-7)
    assert any(any(rises) for rises in got.values())


LAYOUTS = {
    "bf16, ZeRO-1, overlapped": (2, ("train.precision=bf16", "zero.overlap_comm=true")),
    "tensor, sequence, recompute": (2, ("parallel.tensor=2", "parallel.sequence=true", "train.recompute=full")),
    "pipeline": (2, ("parallel.pipeline=2",)),
}


def trained(run: Path, tmp_path: Path, layout: str, backends: tuple[str, ...] = ("cpu", "cuda")) -> tuple[int, Path]:
    ranks, overrides = LAYOUTS[layout]
    out = tmp_path / "run"
    left = shutil.ignore_patterns("checkpoints", "index", "ledger", "metrics.jsonl", "probes*", "evaluation")
    shutil.copytree(run, out, ignore=left)
    arguments = [str(ROOT / "configs/presets/pretrain/tiny.yaml"), f"out={out}", *TRAINING, *overrides]
    job = Job(rehearsed.train, arguments, backends, ranks=ranks, log=tmp_path / "log")
    return job.wait(), out


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_with_capture(tiny_run: Path, tmp_path: Path, layout: str) -> None:
    status, out = trained(tiny_run, tmp_path, layout)
    assert status == 0, (tmp_path / "log").read_text()
    got, expected = ([line["loss"] for line in read_metrics(run / "metrics.jsonl")][:2] for run in (out, tiny_run))
    assert got == pytest.approx(expected, rel=1e-2 if "bf16" in layout else 1e-5)
    visits = list(read_visits(RunDir.at(out)))
    assert len(torch.cat([each["rows"] for each in visits])) > 10


def test_a_job_with_nccl_alone_is_caught(tiny_run: Path, tmp_path: Path) -> None:
    status, _ = trained(tiny_run, tmp_path, "bf16, ZeRO-1, overlapped", ("cuda",))
    assert status != 0
    assert "the job has NCCL alone" in (tmp_path / "log").read_text()


def forgotten_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Batch, "to", lambda batch, device: batch)


def forgotten_correction(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hooks, "moved", lambda correction, device: correction)


def forgotten_signs(patch: pytest.MonkeyPatch) -> None:
    make = hooks.Watcher._sign
    patch.setattr(hooks.Watcher, "_sign", lambda watcher, *given: make(watcher, *given).cpu())


def forgotten_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tensor, "cpu", lambda tensor: tensor)


@pytest.mark.parametrize("forget", [forgotten_batch, forgotten_correction, forgotten_signs, forgotten_rows])
def test_what_is_forgotten_is_found(
    device: Pretended, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, job: None, forget: Callable[..., None]
) -> None:
    """The negative control; a kernel's own check of its arguments counts as well."""
    forget(monkeypatch)
    with pytest.raises((Mixed, ValueError), match=r"cpu|CPU|numpy"):
        collector_on(device, tiny_run).rows(passages()).numpy()
