"""Ranks that send a checkpoint together: each its part, once; what one cannot send is everybody's error."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from headwater.train import sending
from headwater.train.artifacts import RunDir, fingerprint_file, write_bytes, write_json
from headwater.train.callbacks import checkpoints
from headwater.train.checkpoint import newest
from headwater.train.remote import Store, StoreError
from headwater.train.remote_checkpoints import RemoteCheckpoints, Uploads
from headwater.train.sending import Helper, Orders
from headwater.train.settings import CheckpointSettings

from ..jobs import REFUSED, call
from .object_store import ADDRESS, FaultyStore, started

pytest.importorskip("moto.server", reason="needs moto (extra: dev)")


def started_as_ranks(arguments: list[str], environment: dict[str, str], harm: str = "") -> int:
    """Every rank says who it is, and one of them meets with something."""
    rank, full = os.environ["RANK"], OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.MonkeyPatch.context() as patch:
        if rank == "1" and harm == "its network":
            patch.setattr(Store, "put", mock.Mock(side_effect=StoreError("no route to the store", got="a cut cable")))
        if rank == "1" and harm == "its disk":
            patch.setattr(sending, "write_json", mock.Mock(side_effect=full))
        return started(arguments, {**environment, "AWS_SDK_UA_APP_ID": f"rank-{rank}"})


def put(server: FaultyStore, step: int) -> list[str]:
    """What was put under a step, in order."""
    below = f"/runs/mine/step-{step:08d}/"
    return [path.removeprefix(below) for method, path in server.asked if method == "PUT" and path.startswith(below)]


@pytest.mark.slow
def test_ranks_send_each_file_once_and_what_says_that_it_is_whole_last(server, store, fresh, config, tmp_path) -> None:
    run, log = RunDir.at(fresh()), tmp_path / "log"
    given = [str(config), f"out={run.path}", "train.hard_stop=4", "checkpoint.every=2", "checkpoint.keep=0"]
    given += [f"checkpoint.remote={ADDRESS}", "checkpoint.asynchronous=true"]
    assert call(started_as_ranks, given, server.environment, ranks=2, log=log) == 0, log.read_text()
    for step in RemoteCheckpoints(store).steps():
        files = json.loads((run.checkpoint(step) / "checkpoint.json").read_text())["files"]
        *names, last = put(server, step)
        assert sorted(names) == sorted(files)
        assert last == "checkpoint.json"
        whose = [server.senders["PUT", f"/runs/mine/step-{step:08d}/{name}"] for name in names]
        assert {rank: whose.count(rank) - len(names) // 2 for rank in set(whose)} in (
            {"rank-0": 0, "rank-1": 0},
            {"rank-0": 1, "rank-1": 0},
        )
    assert 4 in RemoteCheckpoints(store).steps()
    assert not list(run.checkpoints.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("its network", r"error: no route to the store \(rank 1 on .*\)"),
        ("its disk", r"error: .*No space left on device.*\(rank 1 on .*\)"),
    ],
    ids=["its network", "its disk"],
)
def test_what_one_rank_cannot_send_is_said_once_and_the_rest_is_not_sent_again(
    server, store, fresh, config, tmp_path, harm: str, said: str
) -> None:
    """Both ranks end, and nothing there is taken for a checkpoint; the next start sends what is missing alone."""
    run, log = RunDir.at(fresh()), tmp_path / "log"
    given = [str(config), f"out={run.path}", "train.hard_stop=2", f"checkpoint.remote={ADDRESS}"]
    assert call(started_as_ranks, given, server.environment, harm, ranks=2, log=log) == REFUSED, log.read_text()
    assert log.read_text().count("error:") == 1
    assert re.search(said, log.read_text())
    assert newest(run.checkpoints).step == 2
    assert RemoteCheckpoints(store).steps() == []
    files = json.loads((run.checkpoint(2) / "checkpoint.json").read_text())["files"]
    there = {name.partition("/")[2] for name in store.names("step-00000002")}
    assert there < set(files) or harm == "its disk", "the other rank's have arrived"
    assert there
    server.asked.clear()
    assert call(started_as_ranks, given, server.environment, ranks=2, log=log) == 0, log.read_text()
    assert sorted(put(server, 2)) == sorted({*files, "checkpoint.json"} - there)
    assert RemoteCheckpoints(store).steps() == [2]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What is sent of one: two files, and what names them."""
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    for name, data in (("a", b"a"), ("b", bytes(1000))):
        write_bytes(path / name, data)
    write_json(path / "checkpoint.json", {"files": {name: fingerprint_file(path / name) for name in ("a", "b")}})
    return path


def place_of(rank: int, size: int) -> Any:
    return SimpleNamespace(rank=rank, size=size)


@pytest.mark.parametrize("left", ["a note", "a process"])
def test_what_an_earlier_start_has_left_answers_no_order(store, checkpoint, monkeypatch, left: str) -> None:
    """Its note, or one of its processes that still sends: of three it would send another part than of two."""
    monkeypatch.setattr(sending, "LOOKS_S", 0.01)
    there, directory = RemoteCheckpoints(store), checkpoint.parent
    orders, asked = Orders(there, directory, place_of(0, 2)), iter(range(12))
    old, helper = (Helper(there, directory, place_of(1, size)) for size in (3, 2))
    if left == "a note":
        write_json(directory / "sending.part" / "rank-00001.json", {"order": "1", "error": None})
    else:
        old.start()
    try:
        there.send(checkpoint, lambda: next(asked, None) is not None, orders.send_files)
        assert store.names() == ["step-00000002/b"]
        helper.start()
        there.send(checkpoint, send_files=orders.send_files)
        assert there.steps() == [2]
    finally:
        old.abandon()
        helper.abandon()


def test_a_note_that_does_not_reach_the_disk_is_tried_again(store, checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(sending, "LOOKS_S", 0.01)
    monkeypatch.setattr(sending, "AGAIN_S", 0.01)
    full = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError(errno.ESTALE, os.strerror(errno.ESTALE))]

    def written(path: Path, value: object) -> None:
        if path.name.startswith("rank-") and full:
            raise full.pop()
        write_json(path, value)

    monkeypatch.setattr(sending, "write_json", written)
    there, directory = RemoteCheckpoints(store), checkpoint.parent
    helper = Helper(there, directory, place_of(1, 2))
    helper.start()
    try:
        there.send(checkpoint, send_files=Orders(there, directory, place_of(0, 2)).send_files)
    finally:
        helper.abandon()
    assert (there.steps(), full) == ([2], [])


def test_what_is_not_there_is_no_checkpoint_whoever_says_so(store, checkpoint) -> None:
    there = RemoteCheckpoints(store)
    with pytest.raises(StoreError, match="step-00000002 lacks a"):
        there.send(checkpoint, send_files=lambda path, wanted: there.send_files(path, wanted, (0, 2)))
    assert there.steps() == []


def test_what_was_cut_short_on_the_way_is_sent_again(server, store, checkpoint) -> None:
    there = RemoteCheckpoints(store)
    server.fault = lambda method, path: "cut" if method == "PUT" and path.endswith("/b") else None
    with pytest.raises(StoreError, match="step-00000002/b cannot be sent"):
        there.send(checkpoint)
    server.fault = lambda *_: None
    there.send(checkpoint)
    assert store.read("step-00000002/b") == bytes(1000)


def test_a_run_that_is_asked_to_stop_while_it_waits_for_the_last_to_be_sent_ends(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(checkpoints, "PATIENCE_S", 0.0)
    world: Any = SimpleNamespace(rank=0, size=1, is_main=True)
    callback = checkpoints.Checkpoints(tmp_path, CheckpointSettings(remote=ADDRESS), world, {})
    trainer: Any = SimpleNamespace(world=world, stop_signal=None)

    class Slow(Uploads):
        unsent = frozenset((6,))

        def wait(self, seconds: float | None) -> bool:
            trainer.stop_signal = signal.SIGTERM
            return False

    callback._uploads = Slow(RemoteCheckpoints(Store(ADDRESS)), tmp_path, 1, set(), checkpoints.warn)
    callback._finish_uploads(trainer)
    assert f"steps [6] are not in {ADDRESS} yet: the next start sends them" in capsys.readouterr().err
