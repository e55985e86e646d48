"""Checkpoints in an object store, over a real S3 protocol server on loopback, which fails in every way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headwater.configs import load_config
from headwater.configs.errors import ConfigError, CorruptError, MismatchError, MissingError, UserError
from headwater.train import remote
from headwater.train.artifacts import RunDir, read_json, write_json
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import newest, steps_in
from headwater.train.preflight import check_inputs
from headwater.train.remote import Store, StoreError
from headwater.train.remote_checkpoints import RemoteCheckpoints, Uploads, newest_anywhere
from headwater.train.settings import PretrainSettings

from ..jobs import call, train
from .object_store import ADDRESS, started

pytest.importorskip("moto.server", reason="needs moto (extra: dev)")

SHORT = ("checkpoint.every=2", "checkpoint.keep=1", "checkpoint.steps=[1]")


@pytest.fixture(scope="module")
def run(fresh: Callable[[], Path], config: Path) -> RunDir:
    """An unbroken run of six updates, with checkpoints after four and six; tests only read it."""
    run = RunDir.at(fresh())
    train([config, f"out={run.path}", "train.hard_stop=6", "checkpoint.every=2"], log=run.path / "log")
    return run


def sent(store: Store, run: RunDir) -> RemoteCheckpoints:
    there = RemoteCheckpoints(store)
    for step in steps_in(run.checkpoints):
        there.send(run.checkpoint(step))
    assert there.steps() == [4, 6]
    return there


def found(there: RemoteCheckpoints, directory: Path, said: list[str]) -> int | None:
    checkpoint = newest_anywhere(directory, there, lambda _: None, said.append, every_byte=False)
    return checkpoint.step if checkpoint is not None else None


def finish(uploads: Uploads, *, patient: bool) -> None:
    """As at the end of a training."""
    uploads.try_again()
    assert uploads.wait(60)
    uploads.conclude(patient=patient)


def everything(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "behind"), [(1, "true"), (2, "false")])
def test_a_run_whose_disk_is_lost_goes_on_from_the_store(
    server, store, run, fresh, config, tmp_path, ranks: int, behind: str
) -> None:
    """Nothing is left but the settings and the documents; what the run had noted comes back too."""
    lost, log = RunDir.at(fresh()), tmp_path / "log"
    again = tmp_path / "elsewhere"
    common = [f"checkpoint.remote={ADDRESS}", *SHORT, f"checkpoint.asynchronous={behind}"]
    stopped = [str(config), f"out={lost.path}", "train.hard_stop=4", *common]
    assert call(started, stopped, server.environment, ranks=ranks, log=log) == 0, log.read_text()
    there = RemoteCheckpoints(store)
    assert there.steps() == [1, 4]  # the rest is pruned there as it is here
    assert not [name for name in store.names() if name.startswith("step-00000002")]
    shutil.rmtree(lost.path)
    goes_on = [str(config), f"out={again}", "train.hard_stop=6", *common]
    assert call(started, goes_on, server.environment, ranks=ranks, log=log) == 0, log.read_text()
    assert f"fetching step 4 from {ADDRESS}" in log.read_text()
    mine, whole = RunDir.at(again), newest(run.checkpoints)
    assert [each["step"] for each in read_metrics(mine.metrics)] == [1, 2, 3, 4, 5, 6]
    assert pq.read_table(mine.ledger)["step"].unique().to_pylist() == [1, 2, 3, 4, 5, 6]
    assert there.steps() == [1, 6]
    if ranks == 1:
        assert newest(mine.checkpoints).fingerprint == whole.fingerprint


@pytest.mark.slow
def test_a_run_whose_store_is_gone_ends_with_one_error(server, run, config, tmp_path) -> None:
    """It goes on meanwhile, and its own checkpoints are whole."""
    mine, log = RunDir.at(shutil.copytree(run.path, tmp_path / "run")), tmp_path / "log"
    gone = {**server.environment, "S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    given = [str(config), f"out={mine.path}", "train.hard_stop=7", f"checkpoint.remote={ADDRESS}"]
    assert call(started, given, gone, ranks=1, log=log) == 2
    said = log.read_text()
    assert said.count("error:") == 1
    assert f"error: step-00000007/checkpoint.json cannot be read in {ADDRESS}" in said
    assert newest(mine.checkpoints).step == 7


@pytest.mark.slow
def test_what_is_fetched_is_what_was_sent(store, run, tmp_path) -> None:
    there = sent(store, run)
    for step in (4, 6):
        got = there.fetch(step, tmp_path / "checkpoints")
        assert everything(got.path) == everything(run.checkpoint(step))
    metrics = [each["step"] for each in read_metrics(tmp_path / "metrics.jsonl")]
    assert metrics == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_where_a_run_began_is_not_looked_at_again(store, run, config, tmp_path) -> None:
    given = [f"out={tmp_path / 'new'}", f"checkpoint.remote={ADDRESS}", f"model.init_from={tmp_path / 'gone'}"]
    settings = load_config(PretrainSettings, config, given)
    with pytest.raises(MissingError, match="gone is not a checkpoint"):
        check_inputs(settings, RunDir.at(settings.out))
    sent(store, run)
    check_inputs(settings, RunDir.at(settings.out))


@pytest.mark.slow
def test_sent_again_is_not_sent(server, store, run) -> None:
    there = sent(store, run)
    server.asked.clear()
    there.send(run.checkpoint(6))
    assert not [each for each in server.asked if each[0] in ("PUT", "POST")]


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["", "cut", "gone", "no copies"])
def test_what_checkpoints_share_is_sent_once(server, store, run, tmp_path, harm: str) -> None:
    """Files of the same bytes, but for what is damaged or gone there, and where a store does not copy."""
    mine = RunDir.at(shutil.copytree(run.path, tmp_path / "run"))
    earlier, later = mine.checkpoint(4), mine.checkpoint(6)
    meta = read_json(later / "checkpoint.json")
    shared, *_ = [name for name in meta["files"] if "exp_avg" in name]
    (later / shared).unlink()
    os.link(earlier / shared, later / shared)
    meta["files"][shared] = read_json(earlier / "checkpoint.json")["files"][shared]
    write_json(later / "checkpoint.json", meta)
    there = RemoteCheckpoints(store)
    there.send(earlier)
    name, source = f"{later.name}/{shared}", f"{earlier.name}/{shared}"
    if harm == "cut":
        store.write(source, b"short")
    elif harm == "gone":
        store.remove([source])
    server.fault = lambda method, _: "500" if harm == "no copies" and method == "COPY" else None
    server.asked.clear()
    there.send(later)
    assert any(method == "PUT" and path.endswith(name) for method, path in server.asked) == bool(harm)
    server.fault = lambda *_: None
    assert store.holds(later / shared, name, meta["files"][shared])
    assert everything(there.fetch(6, tmp_path / "checkpoints").path) == everything(later)
    there.prune(1, ())
    assert there.steps() == [6]
    assert store.holds(later / shared, name, meta["files"][shared]), "a copy of its own"


def hasty(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that is not waited for long: a line that has broken is noticed when no answer has come in time."""
    monkeypatch.setattr(remote, "TIMEOUT_S", 2)
    return Store(ADDRESS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "dropped", "slow"])
def test_a_store_that_fails_once_is_asked_again(server, store, run, tmp_path, monkeypatch, fault: str) -> None:
    """Every object, the first time: it is refused, the line breaks, no answer comes in time."""
    store = hasty(monkeypatch) if fault != "500" else store
    seen: set[tuple[str, str]] = set()

    def once(method: str, path: str) -> str | None:
        if method not in ("PUT", "GET") or "exp_avg" not in path or (method, path) in seen:
            return None
        seen.add((method, path))
        return fault if fault != "dropped" or method == "PUT" else None

    server.fault = once
    there = sent(store, run)
    assert len(seen) == 4
    assert everything(there.fetch(6, tmp_path / "checkpoints").path) == everything(run.checkpoint(6))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "dropped"])
def test_a_store_that_goes_on_failing_is_one_error_in_the_end(server, store, run, monkeypatch, fault: str) -> None:
    """The run's own checkpoints are untouched, and nothing there is taken for one until all of it has arrived."""
    store = hasty(monkeypatch) if fault != "500" else store
    there, said = RemoteCheckpoints(store), []
    before = everything(run.checkpoints)
    server.fault = lambda method, path: fault if method == "PUT" and "exp_avg_sq" in path else None
    uploads = Uploads(there, run.checkpoints, 1, set(), said.append)
    uploads.add(6)
    with pytest.raises(StoreError, match=rf"exp_avg_sq.* cannot be sent to {ADDRESS}"):
        finish(uploads, patient=True)
    assert said[0].startswith(f"step 6 is not in {ADDRESS} yet: step-00000006/exp_avg_sq")
    assert uploads.unsent == {6}, "it is kept from being pruned"
    assert there.steps() == []
    assert [name for name in store.names() if name.startswith("step-00000006/weight")], "some of it has arrived"
    assert found(there, Path("nowhere"), said) is None
    finish(uploads, patient=False)  # a run that was asked to stop ends well all the same
    assert everything(run.checkpoints) == before
    server.fault = lambda *_: None
    uploads.add(4)
    finish(uploads, patient=True)
    assert there.steps() == [4], "the next one goes, and takes the place of one that waited"


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut short", "one bit", "gone", "truncated on the way", "no JSON"])
def test_what_is_damaged_is_passed_over_and_named(server, store, run, tmp_path, harm: str) -> None:
    there, said = sent(store, run), []
    name = next(each for each in store.names("step-00000006/weight"))
    whole = (run.path / "checkpoints" / name).read_bytes()
    client, key = store._client, f"mine/{name}"
    if harm == "gone":
        client.delete_object(Bucket="runs", Key=key)
    elif harm == "truncated on the way":
        server.fault = lambda method, path: "truncated" if method == "GET" and name in path else None
    elif harm == "no JSON":
        client.put_object(Bucket="runs", Key="mine/step-00000006/checkpoint.json", Body=b"{")
    else:
        body = whole[:-8] if harm == "cut short" else whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
        client.put_object(Bucket="runs", Key=key, Body=body)
    directory = tmp_path / "checkpoints"
    if harm == "truncated on the way":  # it may recover: nobody begins anew, or further back, for that
        with pytest.raises(StoreError, match=name):
            found(there, directory, said)
    else:
        assert found(there, directory, said) == 4
        assert any(line.startswith(f"passing over step 6 of {ADDRESS}") for line in said)
    assert not list(directory.glob("*.part"))
    assert not (directory / "step-00000006").exists()


@pytest.mark.slow
def test_the_newest_whole_one_is_taken_wherever_it_is(server, store, run, tmp_path) -> None:
    there, said = sent(store, run), []
    here = tmp_path / "checkpoints"
    shutil.copytree(run.checkpoints, here)
    server.asked.clear()
    assert found(there, here, said) == 6
    assert not said
    assert not [path for method, path in server.asked if "weight" in path]
    file = next(here.glob("step-00000006/weight*"))
    file.write_bytes(file.read_bytes()[:-3])
    assert found(there, here, said) == 6, "the damaged one here is replaced"
    assert everything(here / "step-00000006") == everything(run.checkpoint(6))
    server.fault = lambda *_: "500"
    assert found(there, here, said) == 6, "a store that is down keeps nobody from going on"
    with pytest.raises(StoreError):
        found(there, tmp_path / "empty", said)


@pytest.mark.slow
def test_what_the_run_had_noted_comes_with_a_newer_checkpoint(store, run, tmp_path) -> None:
    """Here are a checkpoint and notes of an earlier step than the store's: steps between would be nobody's."""
    there, mine, said = sent(store, run), RunDir.at(tmp_path / "run"), []
    shutil.copytree(run.checkpoint(4), mine.checkpoint(4))
    lines = run.metrics.read_text().splitlines(keepends=True)
    mine.metrics.write_text("".join(lines[:4]))
    (mine.path / "provenance.json").write_text("its own")
    assert found(there, mine.checkpoints, said) == 6
    assert mine.metrics.read_text() == "".join(lines)
    assert everything(mine.ledger) == everything(run.ledger)
    assert (mine.path / "provenance.json").read_text() == "its own"


def test_a_file_that_grows_while_it_is_sent_has_arrived(store, tmp_path, monkeypatch) -> None:
    file, upload = tmp_path / "metrics.jsonl", store._client.upload_file
    file.write_text("one\n")

    def growing(*given: object, **more: object) -> None:
        upload(*given, **more)
        with open(file, "a") as added:
            added.write("two\n")

    monkeypatch.setattr(store._client, "upload_file", growing)
    store.put(file, "metrics.jsonl")
    assert store.read("metrics.jsonl") == b"one\n"
    monkeypatch.setattr(store._client, "upload_file", lambda *_, **__: None)  # what is there is of before
    with pytest.raises(StoreError, match="4 of 8 bytes have arrived"):
        store.put(file, "metrics.jsonl")


def test_what_is_not_wanted_any_longer_is_broken_off(store, tmp_path) -> None:
    file, asked = tmp_path / "weight", []
    file.write_bytes(bytes(20 << 20))  # in parts

    def wanted() -> bool:
        asked.append(None)
        return len(asked) < 5

    with pytest.raises(StoreError, match="not wanted any longer"):
        store.put(file, "weight", wanted)
    assert store.names() == []
    assert len(asked) < 20


ENDS = """
import time
from pathlib import Path
from headwater.train.remote import Store
from headwater.train.remote_checkpoints import RemoteCheckpoints, Uploads

Store.read = lambda *_: None
Store.names = lambda *_: []
Store.put = lambda *_: time.sleep(300)
uploads = Uploads(RemoteCheckpoints(Store("s3://a/b")), Path(DIRECTORY), 1, set(), print)
uploads.add(6)
uploads.wait(0.2)
uploads.conclude(patient=False)
uploads.abandon()
"""


@pytest.mark.slow
def test_a_process_that_ends_does_not_wait_for_what_is_being_sent(run) -> None:
    text = ENDS.replace("DIRECTORY", repr(str(run.checkpoints)))
    ended = subprocess.run([sys.executable, "-c", text], timeout=60, capture_output=True, text=True, check=True)
    assert ended.stdout == "steps [6] are not in s3://a/b yet: the next start sends them\n"


@pytest.mark.slow
def test_where_another_runs_checkpoints_lie_nothing_is_sent(store, run, tmp_path) -> None:
    there, said = sent(store, run), []
    other = tmp_path / "checkpoints"
    shutil.copytree(run.checkpoints, other)
    for step in (4, 6):
        path = other / f"step-{step:08d}" / "checkpoint.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "stream": "another"}))
    with pytest.raises(MismatchError, match="checkpoints of another run"):
        found(there, other, said)


@pytest.mark.slow
def test_names_that_lead_out_of_a_checkpoint_are_refused(store, run, tmp_path) -> None:
    there = sent(store, run)
    meta = json.loads((run.checkpoint(6) / "checkpoint.json").read_text())
    meta["files"]["../../escaped"] = "0"
    body = json.dumps(meta).encode()
    store._client.put_object(Bucket="runs", Key="mine/step-00000006/checkpoint.json", Body=body)
    store._client.put_object(Bucket="runs", Key="mine/step-00000006/../../escaped", Body=b"out")
    with pytest.raises(CorruptError, match=r"no file below it|lacks \.\."):
        there.fetch(6, tmp_path / "run" / "checkpoints")
    assert not (tmp_path / "escaped").exists()


def test_pruning_leaves_fixed_steps_and_clears_what_was_half_sent(store) -> None:
    for step in (1, 2, 3, 4, 5):
        for name in ("weight-0.safetensors", "checkpoint.json")[: 1 if step in (3, 5) else 2]:
            store._client.put_object(Bucket="runs", Key=f"mine/step-{step:08d}/{name}", Body=b"{}")
    store._client.put_object(Bucket="runs", Key="mine/other", Body=b"not ours")
    there = RemoteCheckpoints(store)
    there.prune(1, {1})
    left = {name.split("/")[0] for name in store.names()}
    assert left == {"step-00000001", "step-00000004", "step-00000005", "other"}, "5 may be on its way"


def test_an_unknown_bucket_and_other_addresses_are_refused(server, config) -> None:
    with pytest.raises(UserError, match=r"cannot be listed in s3://none/x"):
        RemoteCheckpoints(Store("s3://none/x")).steps()
    for address in ("gs://some/place", "s3://bucket", "/somewhere"):
        with pytest.raises(ConfigError, match=r"s3://BUCKET/PREFIX"):
            load_config(PretrainSettings, config, [f"checkpoint.remote={address}"])


def test_what_describes_no_checkpoint_is_refused(store) -> None:
    for body in (b'{"step": 7}', b"[]", b"", b"{" * 5000):
        store._client.put_object(Bucket="runs", Key="mine/step-00000007/checkpoint.json", Body=body)
        with pytest.raises(CorruptError, match="step-00000007"):
            RemoteCheckpoints(store).opened(7)
