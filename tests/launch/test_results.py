"""Results in an object store, over a real S3 protocol server on loopback, which fails in every way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.launch import results
from headwater.launch.cli import commands as cli
from headwater.launch.results import fetch_results, send_results
from headwater.train.artifacts import write_bytes
from headwater.train.remote import Store, StoreError

from ..train.object_store import FaultyStore, served

pytest.importorskip("moto.server", reason="needs moto (extra: dev)")

ADDRESS = "s3://results/study"
SENT = {
    "study.json": b"{}",
    "summary.json": b'{"mrr": 0.9}',
    "table.md": b"| a |",
    "report/index.html": b"<p>" + bytes(range(256)) * 40,
    "seed-0/provenance.json": json.dumps(
        [{"time": "1", "command": ["pretrain"]}, {"time": "5", "command": []}]
    ).encode(),
    "seed-0/metrics.jsonl": b'{"step": 1}\n',
    "seed-0/probes.parquet": b"PAR1",
    "seed-0/evaluation/table.json": b"[]",
    "seed-1/provenance.json": json.dumps([{"time": "2", "command": ["pretrain"]}]).encode(),
}
STAYS = {
    "seed-0/checkpoints/compared.json": b"{}",
    "seed-0/checkpoints/step-00000004/checkpoint.json": b"{}",
    "seed-0/corpus/origin.json": b"{}",
    "seed-0/ledger/steps-00000001.parquet": b"PAR1",
    "seed-0/index-12ab/index.json": b"{}",
    "seed-0/index-12ab/ids.parquet": b"PAR1",
    "seed-0/index-12ab/corpus/origin.json": b"{}",
    "shared/base/manifest.json": b"{}",
    "seed-0/rows.safetensors": b"rows",
    "seed-0/train.lock": b"process 1",
    "seed-0/metrics.jsonl.7.part": b"half",
    "seed-1/log.txt": b"a secret",
}


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyStore]:
    with served() as server:
        Store(ADDRESS)._client.create_bucket(Bucket="results")
        yield server


@pytest.fixture
def store(server: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty prefix."""
    server.fault = lambda *_: None
    monkeypatch.setattr("headwater.train.remote.TIMEOUT_S", 1)
    made = Store("s3://results")
    made.remove(made.names())
    server.asked.clear()
    return Store(ADDRESS)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for name, data in (SENT | STAYS).items():
        write_bytes(tmp_path / "study" / name, data)
    return tmp_path / "study"


def everything(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in directory.rglob("*") if f.is_file()}


def command(*arguments: object) -> SimpleNamespace:
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    return SimpleNamespace(status=result.exit_code, out=result.stdout, err=result.stderr)


def test_what_is_fetched_is_what_was_found_and_nothing_heavy(server, store, study, tmp_path):
    told = command("send", study, ADDRESS)
    assert (told.status, told.out) == (0, f"{ADDRESS}: {len(SENT)} files\n"), told.err
    puts = [path for method, path in server.asked if method == "PUT"]
    assert puts[0] == puts[-1] == "/results/study/results.json"
    assert sorted(puts[1:-1]) == sorted(f"/results/study/{name}" for name in SENT), "each once"
    assert command("fetch", ADDRESS, tmp_path / "here").status == 0
    assert everything(tmp_path / "here") == SENT


def test_sent_again_it_takes_the_place_of_what_was_there(store, study, tmp_path):
    send_results(study, ADDRESS)
    (study / "table.md").unlink()
    write_bytes(study / "summary.json", b'{"mrr": 0.8}')
    write_bytes(study / "seed-2/provenance.json", b'[{"time": "0", "command": []}]'.replace(b'"0"', b'"9"'))
    study.rename(tmp_path / "moved")
    send_results(tmp_path / "moved", ADDRESS)
    fetch_results(ADDRESS, tmp_path / "here")
    assert everything(tmp_path / "here").keys() == {*SENT, "seed-2/provenance.json"} - {"table.md"}
    assert (tmp_path / "here/summary.json").read_bytes() == b'{"mrr": 0.8}'
    assert set(store.names()) == {*everything(tmp_path / "here"), "results.json"}


@pytest.mark.parametrize("fault", ["500", "cut", "dropped"])
def test_what_has_not_all_arrived_is_no_result_until_it_is_sent_again(server, store, study, tmp_path, fault: str):
    send_results(study, ADDRESS)
    server.fault = lambda method, path: fault if method == "PUT" and "index.html" in path else None
    told = command("send", study, ADDRESS)
    assert (told.status, told.err.count("error:")) == (2, 1)
    assert f"report/index.html cannot be sent to {ADDRESS}" in told.err
    server.fault = lambda *_: None
    with pytest.raises(MissingError, match="not all arrived"):
        fetch_results(ADDRESS, tmp_path / "here")
    send_results(study, ADDRESS)
    assert fetch_results(ADDRESS, tmp_path / "here") == len(SENT)


@pytest.mark.parametrize("harm", ["cut short", "one bit", "gone", "500", "truncated on the way"])
def test_what_is_not_what_was_sent_leaves_no_directory(server, store, study, tmp_path, harm: str):
    send_results(study, ADDRESS)
    name, body = "report/index.html", SENT["report/index.html"]
    if harm == "gone":
        store.remove([name])
    elif harm in ("500", "truncated on the way"):
        fault = harm.partition(" ")[0]
        server.fault = lambda method, path: fault if method == "GET" and name in path else None
    else:
        store.write(name, body[:-8] if harm == "cut short" else body[:-8] + bytes([body[-8] ^ 1]) + body[-7:])
    expected = StoreError if harm in ("gone", "500", "truncated on the way") else CorruptError
    with pytest.raises(expected, match=name):
        fetch_results(ADDRESS, tmp_path / "far" / "here")
    assert not (tmp_path / "far").exists()
    server.fault = lambda *_: None
    send_results(study, ADDRESS)
    assert fetch_results(ADDRESS, tmp_path / "here") == len(SENT)


def test_a_file_that_changes_while_it_is_sent_is_refused(store, study, tmp_path, monkeypatch):
    put = Store.put

    def growing(self: Store, local: Path, name: str) -> None:
        put(self, local, name)
        if name.endswith("metrics.jsonl"):
            local.write_bytes(local.read_bytes() + b'{"step": 2}\n')

    monkeypatch.setattr(Store, "put", growing)
    with pytest.raises(UserError, match=r"metrics\.jsonl has changed while it was sent"):
        send_results(study, ADDRESS)
    with pytest.raises(MissingError, match="not all arrived"):
        fetch_results(ADDRESS, tmp_path / "here")


def test_a_place_that_holds_something_else_is_left_as_it_is(store, study, tmp_path):
    store.write("step-00000004/checkpoint.json", b"{}")
    with pytest.raises(UserError, match="something else"):
        send_results(study, ADDRESS)
    assert store.names() == ["step-00000004/checkpoint.json"]
    store.remove(store.names())
    send_results(study, ADDRESS)
    there = {name: store.read(name) for name in store.names()}
    write_bytes(tmp_path / "other/provenance.json", json.dumps([{"time": "1", "command": ["another"]}]).encode())
    with pytest.raises(MismatchError, match="another directory"):
        send_results(tmp_path / "other", ADDRESS)
    assert {name: store.read(name) for name in store.names()} == there


def test_directories_without_a_training_are_told_apart(store, tmp_path):
    for name in ("one", "other"):
        write_bytes(tmp_path / name / "table.json", f'["{name}"]'.encode())
    send_results(tmp_path / "one", ADDRESS)
    with pytest.raises(MismatchError, match="another directory"):
        send_results(tmp_path / "other", ADDRESS)
    assert send_results(tmp_path / "one", ADDRESS) == 1
    assert store.read("table.json") == b'["one"]'


def test_a_file_that_has_the_lists_name_is_refused(store, study):
    write_bytes(study / "results.json", b"[]")
    with pytest.raises(UserError, match="the name of the list"):
        send_results(study, ADDRESS)
    assert store.names() == []


def test_they_are_fetched_into_the_directory_one_stands_in(store, study, tmp_path, monkeypatch):
    send_results(study, ADDRESS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert command("fetch", ADDRESS, ".").status == 0
    assert everything(tmp_path / "here") == SENT


def test_bad_input_is_one_clear_error(store, study, tmp_path):
    write_bytes(tmp_path / "home/letter.md", b"private")
    for arguments, said in (
        ((tmp_path / "none", ADDRESS), "is no directory"),
        ((tmp_path / "home", ADDRESS), "holds no results"),
        ((study, "gs://a/b"), "no address"),
        ((study, "s3://bucket"), "no address"),
        ((study, "s3://absent/x"), "in s3://absent/x"),
    ):
        told = command("send", *arguments)
        assert told.status == 2, arguments
        assert said in told.err
        assert told.err.count("error:") == 1
    assert store.names() == []
    with pytest.raises(MissingError, match="holds no results"):
        fetch_results(ADDRESS, tmp_path / "here")
    with pytest.raises(UserError, match="there already"):
        fetch_results(ADDRESS, study)
    send_results(study, ADDRESS)
    whole = json.loads(store.read(results.MANIFEST) or b"")
    for wrong in (b"[]", b"{", b'{"format": 2}', json.dumps({**whole, "files": ["a"]}).encode()):
        store.write(results.MANIFEST, wrong)
        with pytest.raises(CorruptError, match=r"results\.json is no list"):
            fetch_results(ADDRESS, tmp_path / "here")
    for name in ("../../evil", "/evil", "a/../../evil", "zero\0byte", "half\ud800"):
        store.write(results.MANIFEST, json.dumps({**whole, "files": {name: "0"}}).encode())
        with pytest.raises(CorruptError, match="no file below it"):
            fetch_results(ADDRESS, tmp_path / "here")
    assert not (tmp_path / "here").exists()
