"""What looks at the processes of a run: a profiler's window, stragglers, garbage, boards. None changes the training."""

from __future__ import annotations

import gc
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from headwater.configs import load_config
from headwater.configs.errors import ConfigError, MissingError, UserError
from headwater.train import preflight
from headwater.train.artifacts import RunDir, read_json
from headwater.train.callbacks.garbage import Garbage
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.callbacks.stragglers import slowest
from headwater.train.settings import PretrainSettings

from ..jobs import train
from .slowed import SLOW_RANK

WANDB = importlib.util.find_spec("wandb") is not None
WATCHED = (
    "profile.steps=[2,3]", "profile.ranks=[0,1]", "train.gc_every=2", "callbacks.stragglers.every=2",
    "callbacks.extra=[tests.train.slowed:make]", "callbacks.probes.every=0",
    *(["callbacks.metrics.wandb=watched"] if WANDB else []),
)  # fmt: skip


@pytest.fixture(scope="module")
def watched(fresh: Callable[[], Path], config: Path) -> RunDir:
    """Two ranks under every eye, stopped once; one of them is slow."""
    run = RunDir.at(fresh())
    given = [config, f"out={run.path}", *WATCHED]
    for stop in (3, 5):
        train([*given, f"train.hard_stop={stop}"], ranks=2, log=run.path / "log")
    return run


@pytest.mark.slow
def test_the_training_is_that_of_an_unwatched_run(watched: RunDir, fresh: Callable[[], Path], config: Path) -> None:
    plain = RunDir.at(fresh())
    train(
        [config, f"out={plain.path}", "train.hard_stop=5", "callbacks.probes.every=0"], ranks=2, log=plain.path / "log"
    )
    assert [each["loss"] for each in read_metrics(watched.metrics)] == [
        each["loss"] for each in read_metrics(plain.metrics)
    ]
    assert not plain.profile.exists()


@pytest.mark.slow
def test_each_rank_that_is_asked_leaves_a_trace_of_the_window(watched: RunDir) -> None:
    names = [f"step-00000002-rank-{rank}.json" for rank in (0, 1)]
    assert sorted(path.name for path in watched.profile.iterdir()) == names
    for name in names:
        events = [each.get("name") for each in read_json(watched.profile / name)["traceEvents"]]
        # Two steps of two micro-batches through four layers: each embeds its tokens once.
        assert events.count("aten::embedding") == 4
        assert events.count("Optimizer.step#AdamW.step") == 4, "matrices and vectors are stepped apart"


@pytest.mark.slow
def test_the_slow_rank_is_named(watched: RunDir) -> None:
    lines = [json.loads(line) for line in watched.stragglers.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 5]
    for line in lines:
        assert line["slowest_rank"] == SLOW_RANK
        assert line["slowest_by"] > 1.5
        assert len(line["forward_s"]) == len(line["data_s"]) == 2
        assert line["forward_s"][SLOW_RANK] > 0.2, "two micro-batches a step, .1 s longer each"
    noted = {each["step"]: each for each in read_metrics(watched.metrics) if "slowest_rank" in each}
    assert {step: each["slowest_by"] for step, each in noted.items()} == {
        line["step"]: line["slowest_by"] for line in lines
    }
    assert "warning: rank 1 on " in (watched.path / "log").read_text()


def test_ranks_are_held_against_those_of_their_stage() -> None:
    assert slowest([1.0, 1.1, 5.0, 5.2], [0, 0, 1, 1]) == (1, pytest.approx(1.1))
    assert slowest([1.0, 3.0], [0, 0]) == (1, 3.0)
    assert slowest([0.0, 0.0], [0, 0])[1] == 0


@pytest.mark.slow
@pytest.mark.skipif(not WANDB, reason="needs wandb (extra: wandb)")
def test_weights_and_biases_is_shown_what_the_metrics_say(watched: RunDir) -> None:
    """Both starts write into one run of its, read with its own reader."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    shown: dict[int, float] = {}
    identities = set()
    for path in sorted((watched.path / "wandb").glob("offline-run-*/*.wandb")):
        identities.add(path.name)
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in record.history.item}
            if "train/loss" in items:
                shown[items["step"]] = items["train/loss"]
    assert len(identities) == 1
    assert shown == {each["step"]: each["loss"] for each in read_metrics(watched.metrics)}


def test_garbage_is_looked_for_at_its_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda *_: looked.append(len(looked)))
    callback, trainer = Garbage(3), SimpleNamespace()
    try:
        callback.start(trainer, 0)
        assert not gc.isenabled()
        counts = []
        for step in range(1, 8):
            callback.after_step(trainer, step, [], None)
            counts.append(len(looked))
    finally:
        callback.close()
    assert counts == [1, 1, 2, 2, 2, 3, 3]
    assert gc.isenabled()
    assert not gc.get_freeze_count()


def test_what_cannot_be_watched_is_refused(config: Path, fresh: Callable[[], Path], monkeypatch) -> None:
    for steps in ("[3]", "[5,4]", "[1,2,3]"):
        with pytest.raises(ConfigError, match="two steps"):
            load_config(PretrainSettings, config, [f"profile.steps={steps}"])
    with pytest.raises(ConfigError, match="steps of the training"):
        load_config(PretrainSettings, config, ["profile.steps=[100000,100002]"])
    nobody = load_config(PretrainSettings, config, ["profile.steps=[1,2]", "profile.ranks=[0,1]", f"out={fresh()}"])
    with pytest.raises(UserError, match="ranks that are not there"):
        preflight.check_world(nobody, SimpleNamespace(size=1, data=1))
    settings = load_config(PretrainSettings, config, ["callbacks.metrics.wandb=some", f"out={fresh()}"])
    monkeypatch.setattr(preflight, "find_spec", lambda _: None)
    with pytest.raises(MissingError, match="Weights & Biases is not installed"):
        preflight.check_inputs(settings, RunDir.at(settings.out))
