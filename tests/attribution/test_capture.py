"""Rows captured in training: equal to recomputed ones, in any layout, whether or not the run was stopped."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from headwater.attribution.capture.build import build_captured
from headwater.attribution.capture.sums import mean_rows
from headwater.attribution.capture.visits import read_visits
from headwater.attribution.index.reader import open_index
from headwater.attribution.index.verify import verify
from headwater.attribution.models.base import Example, Site
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.rows.head import HeadWatch
from headwater.attribution.settings import ProjectionSettings, TracedModelSettings, TraceSettings
from headwater.attribution.tracing.opened import open_for_queries
from headwater.attribution.tracing.queries import Query
from headwater.attribution.tracing.query_rows import query_rows
from headwater.attribution.tracing.run import run_trace
from headwater.configs import load_config
from headwater.configs.errors import MismatchError, MissingError, UserError
from headwater.launch.bench.survival.compare import file_differences, index_differences
from headwater.train import parallel
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.ledger_files import read_ledger
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import open_checkpoint
from headwater.train.run import load_callback, pretrain_run
from headwater.train.settings import PretrainSettings
from headwater.train.stream.passages import open_passages

from ..jobs import Job, wait_for
from ..jobs import train as run_job

CONFIG = "pretrain/tiny"
DIMS = ProjectionSettings(dims=7, head=5)
COMMON = (
    "model.tie_embeddings=false",
    "train.steps=12",
    "train.hard_stop=6",
    "train.threads=1",
    "callbacks.probes.every=0",
    "callbacks.metrics.tensorboard=false",
    "callbacks.capture.enabled=true",
    "callbacks.capture.proj=7",
    "callbacks.capture.head=5",
    "callbacks.capture.codecs=[fp32]",
    "callbacks.capture.mode=visits",
    "callbacks.capture.correction=adafactor",
)
EVERY = ("checkpoint.every=1", "checkpoint.keep=0", "callbacks.capture.refresh=1")


def fresh(tiny_run: Path, out: Path) -> Path:
    """A run directory with tiny_run's corpus and nothing trained."""
    shutil.copytree(tiny_run, out, ignore=shutil.ignore_patterns("checkpoints", "ledger", "metrics.jsonl", "probes*"))
    return out


def train(out: Path, *overrides: str) -> RunDir:
    assert pretrain_run(load_config(PretrainSettings, CONFIG, [f"out={out}", *COMMON, *overrides])) == 0
    return RunDir.at(out)


def all_visits(run: RunDir) -> dict[str, Tensor]:
    files = list(read_visits(run))
    return {key: torch.cat([file[key] for file in files]) for key in files[0]}


def in_order(visits: dict[str, Tensor]) -> dict[str, Tensor]:
    """By step, then passage: several replicas keep files of their own."""
    order = np.lexsort((visits["passage"].numpy(), visits["step"].numpy()))
    return {key: value[torch.from_numpy(order)] for key, value in visits.items()}


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def off(got_ND: Tensor, expected_ND: Tensor) -> float:
    """The larger relative difference of two parts of rows, the layers' and the output head's, which comes last."""
    return max(relative(got_ND[:, part], expected_ND[:, part]) for part in (slice(-(5**2)), slice(-(5**2), None)))


def recomputed(run: RunDir, step: int, passages: list[int], correction: str) -> Tensor:
    """Rows of passages at the weights and moments of a checkpoint, one passage at a time."""
    world = parallel.start(threads=1)
    try:
        model = open_model(TracedModelSettings(run=str(run.path), step=step), world)
        collector = GradientCollector(model, DIMS, correction, "cross_entropy")
        texts = open_passages(run)
        return torch.cat([collector.rows([Example(texts.tokens(n).astype(np.int64))]) for n in passages])
    finally:
        parallel.stop()


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Six captured updates, a checkpoint after each, moments refreshed at each."""
    return train(fresh(tiny_run, tmp_path_factory.mktemp("captured") / "run"), *EVERY)


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["adafactor", "adam", "none"])
def test_captured_equals_recomputed(run: RunDir, tiny_run: Path, tmp_path: Path, correction: str) -> None:
    """A head of its own with adafactor, else one that is the embedding."""
    if correction != "adafactor":
        given = (*EVERY, "model.tie_embeddings=true", f"callbacks.capture.correction={correction}")
        run = train(fresh(tiny_run, tmp_path / "run"), *given)
        captured, plain = (
            ([line["loss"] for line in read_metrics(each.metrics, 6)], open_checkpoint(each.checkpoint(6)).fingerprint)
            for each in (run, RunDir.at(tiny_run))
        )
        assert captured == plain, "to the bit as without capture"
    check_recomputed(run, correction)


def check_recomputed(run: RunDir, correction: str) -> None:
    """Rows of update n are those of the model with n - 1 updates."""
    visits = all_visits(run)
    for step in (2, 5):
        at_step = visits["step"] == step
        passages = visits["passage"][at_step].tolist()
        assert len(passages) > 8
        assert off(visits["rows"][at_step], recomputed(run, step - 1, passages, correction)) < 1e-4
    assert relative(visits["rows"][at_step], recomputed(run, 3, passages, correction)) > 1e-3


@pytest.mark.slow
def test_every_visit_after_the_first_update_is_there_once(run: RunDir) -> None:
    visits, ledger = all_visits(run), read_ledger(run.ledger)
    steps, passages = np.asarray(ledger["step"]), np.asarray(ledger["passage"])
    seen = sorted(zip(steps[steps > 1].tolist(), passages[steps > 1].tolist(), strict=True))
    assert sorted(zip(visits["step"].tolist(), visits["passage"].tolist(), strict=True)) == seen


@pytest.mark.slow
def test_the_index_holds_the_weighted_means(run: RunDir) -> None:
    index = open_index(run.index("captured"))
    verify(index.path)
    visits = all_visits(run)
    sums = torch.zeros(index.passages, index.layout.dims, dtype=torch.float64)
    weights = torch.zeros(index.passages, dtype=torch.float64)
    unit = normalize(visits["rows"].double(), dim=1)
    sums.index_add_(0, visits["passage"], unit * visits["lr"][:, None])
    weights.index_add_(0, visits["passage"], visits["lr"])
    expected = (sums / weights.clamp_min(1e-30)[:, None]).float()
    assert relative(index.rows(0, index.passages), index.whitening.apply(expected)) < 1e-4
    noted = index.manifest["captured"]
    unseen = (weights == 0).nonzero().flatten().tolist()
    assert 0 < noted["never_visited"] == len(unseen)
    assert noted["never_visited_ids"] == [index.passage_ids[n] for n in unseen[:100]]
    assert not index.norms[unseen].any()
    assert noted["visits"] == len(visits["passage"])


@pytest.mark.slow
def test_trace_takes_the_mean_query_over_the_checkpoints(run: RunDir, tmp_path: Path) -> None:
    settings = TraceSettings(index=str(run.index("captured")), out=str(tmp_path / "t.jsonl"), task_weight=0)
    found = run_trace(settings, prompt="The capital is", target="Lima")[0]
    assert len(found["proponent_ids"]) == settings.top_k
    assert np.isfinite(found["proponent_scores"]).all()
    assert found["proponent_seen_steps"][0]
    world = parallel.start(threads=1)
    try:
        opened = open_for_queries(run.index("captured"), world)
        asked = [Query("q", "The capital is", "Lima")]
        mean, weight = torch.zeros(1, opened.index.layout.dims), 0.0
        for step in range(1, 7):
            model = open_model(TracedModelSettings(run=str(run.path), step=step), world)
            lr = model.checkpoint.meta["lr"]  # type: ignore[attr-defined]
            collector = GradientCollector(model, DIMS, "adafactor", "cross_entropy")
            mean += lr * normalize(query_rows(collector, opened.passages.tokenizer, asked), dim=1)
            weight += lr
        assert relative(opened.rows(asked), mean / weight) < 1e-5
    finally:
        parallel.stop()


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["adafactor", "adam"])
def test_stopped_and_resumed_is_the_same(tiny_run: Path, tmp_path: Path, correction: str) -> None:
    """Stopped between two refreshes, the correction in use goes on, not one from the moments of the checkpoint."""
    overrides = ("callbacks.capture.refresh=4", f"callbacks.capture.correction={correction}")
    unbroken = train(fresh(tiny_run, tmp_path / "unbroken"), *overrides)
    broken = fresh(tiny_run, tmp_path / "broken")
    train(broken, *overrides, "train.hard_stop=3")
    compare(train(broken, *overrides), unbroken)


@pytest.mark.slow
def test_killed_and_restarted_is_the_same(tiny_run: Path, tmp_path: Path) -> None:
    overrides = ("callbacks.capture.refresh=4", "checkpoint.every=2")
    unbroken = train(fresh(tiny_run, tmp_path / "unbroken"), *overrides)
    broken = RunDir.at(fresh(tiny_run, tmp_path / "broken"))
    job = Job.training([CONFIG, f"out={broken.path}", *COMMON, *overrides], log=tmp_path / "log")
    wait_for(lambda: broken.checkpoint(4).exists() or not job.running)
    job.signal(signal.SIGKILL)
    job.wait()
    assert broken.checkpoint(4).exists(), job.log.read_text()
    compare(train(broken.path, *overrides), unbroken)


def compare(run: RunDir, expected: RunDir) -> None:
    """Captured files equal to the byte; index.json but for the run's own path."""
    assert file_differences(run.path / "capture", expected.path / "capture") == []
    assert index_differences(run.index("captured"), expected.index("captured"), exact=True) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.tensor=2",),
        ("parallel.tensor=2", "parallel.sequence=true"),
        ("parallel.pipeline=2", "train.micro_batch=2"),
        ("parallel.pipeline=2", "model.tie_embeddings=true"),
        ("zero.stage=2",),
        ("zero.stage=3",),
    ],
    ids=lambda layout: "-".join(each.split(".")[1] for each in layout),
)
def test_any_layout_captures_the_same(run: RunDir, tiny_run: Path, tmp_path: Path, layout: tuple[str, ...]) -> None:
    out = RunDir.at(fresh(tiny_run, tmp_path / "run"))
    run_job([CONFIG, f"out={out.path}", *COMMON, *EVERY, *layout], ranks=2, log=tmp_path / "log")
    if "model.tie_embeddings=true" in layout:  # another model than the others'
        check_recomputed(out, "adafactor")
        return
    mine, expected = all_visits(out), all_visits(run)
    mine, expected = in_order(mine), in_order(expected)
    assert torch.equal(mine["passage"], expected["passage"])
    assert torch.equal(mine["step"], expected["step"])
    assert off(mine["rows"], expected["rows"]) < 1e-3
    means, _ = mean_rows(out.checkpoint(6) / "extra", 0)
    others, _ = mean_rows(run.checkpoint(6) / "extra", 0)
    assert off(means, others) < 1e-3


@pytest.mark.slow
def test_other_settings_are_refused(run: RunDir, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    wrong = r"other settings\n(.*\n)*.*callbacks\.capture\.correction = adam(.*\n)*.*callbacks\.capture\.head = 0"
    with pytest.raises(MismatchError, match=wrong):
        train(copy, "train.hard_stop=8", "callbacks.capture.correction=adam", "callbacks.capture.head=0")


def test_what_is_missing_is_named(tiny_run: Path) -> None:
    with pytest.raises(MissingError, match="no checkpoint with captured rows"):
        build_captured(RunDir.at(tiny_run))
    with pytest.raises(MissingError, match="no captured visits"):
        list(read_visits(RunDir.at(tiny_run)))
    for name in ("headwater.attribution.capture.callback:nothing", "no.such.module:x", ""):
        with pytest.raises(UserError, match="cannot be loaded"):
            load_callback(name)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [("train.precision=fp32",), ("train.precision=bf16", "zero.stage=2")], ids=str)
def test_rows_that_are_not_the_gradients_are_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: tuple[str, ...]
) -> None:
    """A layer that multiplies something else than it is handed, by a tenth: as a norm within it would; and a head whose
    loss has another scale than is undone."""
    true_input = Site.true_input

    def other(site: Site, given: Tensor) -> Tensor:
        return true_input(site, given) * (1.1 if "layers.1.mlp.linear_fc1" in site.name else 1.0)

    def louder(watch: HeadWatch, part: slice, hidden_Cd: Tensor, pull_CV: Tensor) -> None:
        chunk(watch, part, hidden_Cd, pull_CV * 1.25)

    chunk = HeadWatch._chunk
    monkeypatch.setattr(HeadWatch, "_chunk", louder)
    monkeypatch.setattr(Site, "true_input", other)
    out = fresh(tiny_run, tmp_path / "run")
    wrong = r"do not add up to its gradients in decoder\.layers\.1\.mlp\.linear_fc1, output_layer\n"
    with pytest.raises(UserError, match=wrong) as told:
        train(out, "train.hard_stop=3", *layout)
    assert "difference of 0.25 in output_layer" in str(told.value)
    assert not (RunDir.at(out).index("captured")).exists()
