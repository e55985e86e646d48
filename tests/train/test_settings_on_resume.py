"""Going on with other settings: refused key by key, or allowed on purpose and noted; what only looks on may differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.configs import load_config
from headwater.configs.errors import ConfigError, MismatchError
from headwater.train.artifacts import RunDir, read_json, write_json
from headwater.train.callbacks.ledger_files import read_ledger
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import KINDS, Checkpoint, newest, open_checkpoint
from headwater.train.resume import check_same_run, compared
from headwater.train.settings import PretrainSettings
from headwater.train.stream.skipping import batch_of, read_ranges
from headwater.train.stream.stream import TrainingStream, open_stream

from ..jobs import status, train

STOPPED = ["train.hard_stop=6", "checkpoint.every=3", "checkpoint.keep=0"]


@pytest.fixture(scope="module")
def run(fresh: Callable[[], Path], config: Path) -> RunDir:
    """Six of ten updates; tests only read it."""
    run = RunDir.at(fresh())
    train([config, f"out={run.path}", *STOPPED], log=run.path / "log")
    return run


@pytest.fixture
def begun(run: RunDir, tmp_path: Path) -> RunDir:
    return RunDir.at(shutil.copytree(run.path, tmp_path / "run"))


def settings_of(run: RunDir, *overrides: str) -> PretrainSettings:
    return load_config(PretrainSettings, run.config, overrides)


def stream_of(run: RunDir, settings: PretrainSettings) -> TrainingStream:
    batch, skip = settings.train.global_batch, read_ranges(settings.train.skip)
    return open_stream(run, global_batch=batch, seed=settings.seed, exclude=settings.train.exclude, skip=skip)


def compare(run: RunDir, *overrides: str) -> dict[str, list]:
    settings = settings_of(run, *overrides)
    return check_same_run(newest(run.checkpoints), settings, stream_of(run, settings)).changed


OTHERS = {
    "optimizer.lr": "0.002",
    "optimizer.min_lr_ratio": "0.5",
    "optimizer.schedule": "linear",
    "optimizer.warmup": "3",
    "optimizer.beta1": "0.8",
    "optimizer.beta2": "0.95",
    "optimizer.eps": "0.5",
    "optimizer.weight_decay": "0.0",
    "optimizer.clip": "0.5",
    "train.steps": "20",
    "train.precision": "bf16",
    "train.spike": "3.0",
    "model.rope_base": "500000.0",
    "model.norm_eps": "0.0001",
}


@pytest.mark.parametrize("key", OTHERS)
def test_what_an_update_depends_on_is_compared(run, key):
    saved = dict(compared(settings_of(run)))[key]
    with pytest.raises(MismatchError) as error:
        compare(run, f"{key}={OTHERS[key]}")
    assert f"{key} = {OTHERS[key]}" in str(error.value.got)
    assert f"{key} = {saved}" in str(error.value.expected)
    assert f"resume.allow=[{key}]" in error.value.fix
    assert compare(run, f"{key}={OTHERS[key]}", f"resume.allow=[{key}]").keys() == {key}


@pytest.mark.parametrize("override", ["seed=4", "train.order_seed=4", "train.global_batch=8", "model.ffn_hidden=64"])
def test_what_cannot_be_changed_is_refused_even_when_allowed(run, override):
    with pytest.raises(MismatchError) as error:
        compare(run, override, f"resume.allow=[{override.partition('=')[0]}]")
    assert override.replace("=", " = ") in str(error.value.got)
    assert "allow" not in error.value.fix


def test_what_looks_on_may_differ(run):
    free = ["out=elsewhere", "zero.stage=3", "train.micro_batch=2", "train.recompute=full", "train.threads=1"]
    free += ["train.hard_stop=9", "train.max_skips=3", "checkpoint.every=1", "checkpoint.asynchronous=true"]
    free += ["callbacks.probes.every=1", "callbacks.metrics.every=2", "parallel.tensor=2", "resume.allow=[train]"]
    assert compare(run, *free, "callbacks.capture.enabled=true", "callbacks.capture.proj=4") == {}


def test_several_differences_are_told_together(run):
    with pytest.raises(MismatchError) as error:
        compare(run, "optimizer.lr=1", "optimizer.beta1=0.5", "train.steps=20", "resume.allow=[train.steps]")
    assert error.value.got == "optimizer.lr = 1.0; optimizer.beta1 = 0.5"
    assert "resume.allow=[optimizer.lr,optimizer.beta1]" in error.value.fix


def test_a_setting_that_is_new_is_compared(run):
    """Whoever adds a setting must say that it may differ; until then it may not. What a checkpoint does not know it
    did as the default says."""
    checkpoint, settings = newest(run.checkpoints), settings_of(run)
    noted = dict(checkpoint.meta["settings"])
    assert noted == compared(settings)
    del noted["train.spike"]
    older = replace(checkpoint, meta={**checkpoint.meta, "settings": noted})
    assert check_same_run(older, settings, stream_of(run, settings)).changed == {}
    settings.train.spike = 2.0
    with pytest.raises(MismatchError, match=r"train.spike = 2.0"):
        check_same_run(older, settings, stream_of(run, settings))


def test_older_checkpoints_are_compared_in_what_they_note(run):
    checkpoint, settings = newest(run.checkpoints), settings_of(run, "train.spike=2")
    older = replace(checkpoint, meta={key: value for key, value in checkpoint.meta.items() if key != "settings"})
    stream = stream_of(run, settings)
    assert check_same_run(older, settings, stream).changed == {}
    settings.optimizer.beta2 = 0.5
    with pytest.raises(MismatchError, match=r"optimizer.beta2 = 0.5"):
        check_same_run(older, settings, stream)


def test_allowing_what_is_no_setting_is_refused(run):
    with pytest.raises(ConfigError, match=r"resume.allow = 'optimiser'"):
        settings_of(run, "resume.allow=[optimiser]")


@pytest.mark.slow
def test_refused_leaves_the_run_and_allowed_is_noted(begun, config, tmp_path):
    arguments = [config, f"out={begun.path}", "optimizer.lr=1.0e-3", "optimizer.clip=0.5"]
    before = {path: path.read_bytes() for path in begun.path.rglob("*") if path.is_file()}
    assert status(arguments, log=tmp_path / "log") == 2
    assert "optimizer.lr = 0.001; optimizer.clip = 0.5" in (tmp_path / "log").read_text()
    assert {path: path.read_bytes() for path in begun.path.rglob("*") if path.is_file()} == before
    train([*arguments, "resume.allow=[optimizer]"], log=tmp_path / "log")
    changed = {"optimizer.lr": [0.003, 0.001], "optimizer.clip": [1.0, 0.5]}
    step_6 = open_checkpoint(begun.checkpoint(6))
    assert read_json(begun.provenance)[-1]["resumed"] == {
        "step": 6, "weights": step_6.fingerprint, "changed": changed,
    }  # fmt: skip
    assert newest(begun.checkpoints).meta["changes"] == [{"step": 6, **changed}]
    rates = [line["lr"] for line in read_metrics(begun.metrics)]
    assert rates[5] > 2 * rates[6]
    # The last checkpoint has these settings: nothing is left to be allowed.
    assert check_same_run(newest(begun.checkpoints), settings_of(begun), stream_of(begun, settings_of(begun)))


def test_ranges_of_batches():
    assert read_ranges(["10-12", "3", "11-15", "16"]) == [range(3, 4), range(10, 17)]
    assert [batch_of(step, [range(3, 4), range(5, 7)]) for step in range(6)] == [0, 1, 2, 4, 7, 8]
    for wrong in ("4-3", "-1", "a", "1-", "1.5"):
        with pytest.raises(ValueError, match=wrong):
            read_ranges([wrong])
    with pytest.raises(ConfigError, match=r"train.skip = '4-3'"):
        load_config(PretrainSettings, None, ["train.skip=[4-3]"])


def test_batches_are_skipped_and_injections_stay(run):
    settings = settings_of(run)
    whole = stream_of(run, settings)
    settings.train.skip = ["2-4", "6"]
    skipping = stream_of(run, settings)
    assert skipping.fingerprint != whole.fingerprint
    for step, batch in enumerate([0, 1, 5, 7]):
        ours, theirs = skipping.sequences(step, 0, 4), whole.sequences(batch, 0, 4)
        assert [each.number for each in ours] == [each.number for each in theirs]
        injected = sorted(p for each in ours for p in each.passages[each.injected])
        assert injected == sorted(whole.injections(step))


def test_what_has_been_trained_on_cannot_be_skipped(run):
    allow = "resume.allow=[train.skip]"
    with pytest.raises(MismatchError, match=r"train.skip"):
        compare(run, "train.skip=[6-7]")
    assert compare(run, "train.skip=[6-7]", allow) == {"train.skip": [[], ["6-7"]]}
    with pytest.raises(MismatchError, match="has been trained on"):
        compare(run, "train.skip=[5-7]", allow)


@pytest.mark.slow
def test_a_run_passes_over_batches_from_a_checkpoint_on(begun, run, config, tmp_path):
    train([config, f"out={begun.path}", "train.skip=[6-8]", "resume.allow=[train.skip]"], log=tmp_path / "log")
    whole = stream_of(run, settings_of(run))
    table = read_ledger(begun.ledger).to_pydict()
    for step in range(1, 11):
        expected = [each.number for each in whole.sequences(step - 1 if step <= 6 else step + 2, 0, 4)]
        visits = zip(table["step"], table["batch_index"], table["sequence"], strict=True)
        assert {(index, number) for at, index, number in visits if at == step} == set(enumerate(expected))
    assert newest(begun.checkpoints).meta["changes"] == [{"step": 6, "train.skip": [[], ["6-8"]]}]


def same_state(one: Checkpoint, other: Checkpoint) -> None:
    for kind in KINDS:
        for name in one.names:
            assert (one.tensor(kind, name) == other.tensor(kind, name)).all(), (kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["parallel.tensor=2"]], ids=["one", "tp2"])
def test_branching_off_with_moments(run, fresh, config, tmp_path, overrides):
    """A run that begins with another's weights and moments: its first update is the one that the other would make."""
    branch, plain = RunDir.at(fresh()), RunDir.at(fresh())
    start, gone = tmp_path / "start", tmp_path / "gone"
    shutil.copytree(run.checkpoint(3), start)
    arguments = [f"model.init_from={start}", "optimizer.schedule=constant", "optimizer.warmup=0"]
    arguments += ["checkpoint.steps=[0]", "train.hard_stop=1"]
    ranks = 2 if overrides else 1
    given = [config, f"out={branch.path}", *arguments, *overrides, "optimizer.keep_moments=true"]
    train(given, ranks=ranks, log=tmp_path / "log")
    begin = open_checkpoint(branch.checkpoint(0))
    same_state(begin, open_checkpoint(start))
    assert begin.meta["updates"] == 3
    assert open_checkpoint(branch.checkpoint(1)).meta["updates"] == 4
    weights = open_checkpoint(start).fingerprint
    noted = {"path": str(start), "step": 3, "weights": weights, "moments": True}
    assert begin.meta["start"] == noted
    (first,) = read_json(branch.provenance)
    assert first["start"] == noted
    start.rename(gone)  # whoever goes on does not open it again
    train([*given, "train.hard_stop=2"], ranks=ranks, log=tmp_path / "log")
    gone.rename(start)
    assert newest(branch.checkpoints).meta["start"] == noted
    if ranks == 1:  # the negative control: without moments Adam begins anew
        train([config, f"out={plain.path}", *arguments], log=tmp_path / "log")
        assert open_checkpoint(plain.checkpoint(1)).meta["updates"] == 1
        assert open_checkpoint(plain.checkpoint(1)).fingerprint != open_checkpoint(branch.checkpoint(1)).fingerprint


@pytest.mark.slow
def test_weights_without_moments_cannot_be_branched_from(run, fresh, config, tmp_path):
    start = shutil.copytree(run.checkpoint(3), tmp_path / "start")
    meta = json.loads((start / "checkpoint.json").read_text())
    meta["tensors"] = {"weight": meta["tensors"]["weight"]}
    write_json(start / "checkpoint.json", meta)
    given = [config, f"out={fresh()}", f"model.init_from={start}", "optimizer.keep_moments=true"]
    assert status(given, log=tmp_path / "log") == 2
    assert "holds no moments" in (tmp_path / "log").read_text()
