"""An index in an object store, over a real S3 protocol server on loopback: what is found is what is found beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from headwater.attribution.index.errors import ChangedBytesError
from headwater.attribution.index.reader import Index, open_index
from headwater.attribution.index.store import RemoteShards, fetch, send
from headwater.attribution.index.verify import verify
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.search.options import ScanOptions, ScanResult, Source
from headwater.attribution.search.scan import scan
from headwater.configs.errors import MissingError, UserError
from headwater.train.remote import Store, StoreError

from ..train.object_store import FaultyStore, served
from .dense_formula import LAYOUT, N, build, queries_of
from .synthetic_rows import make_rows

pytest.importorskip("moto.server", reason="needs moto (extra: dev)")

ADDRESS = "s3://indexes/small"
SHARDS = -(-N // 31)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyStore]:
    with served() as server:
        Store(ADDRESS)._client.create_bucket(Bucket="indexes")
        yield server


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    return build(folder, make_rows(LAYOUT, N), kind="kronecker", codecs=["fp32", "sign"], shard_rows=31)


@pytest.fixture
def sent(server: FaultyStore, index: Index, monkeypatch: pytest.MonkeyPatch) -> FaultyStore:
    server.fault = lambda *_: None
    monkeypatch.setattr("headwater.train.remote.TIMEOUT_S", 1)
    send(index.path, ADDRESS)
    server.asked.clear()
    return server


def found(path: Path, queries: int = 3, **options: object) -> ScanResult:
    given = ScanOptions(codec="sign", **{"top_k": 4, "bottom_k": 2} | options)  # type: ignore[arg-type]
    return scan([Source(open_index(path), queries_of(queries))], given)


def fetched(server: FaultyStore) -> list[str]:
    """Names of the rows' files that were asked for."""
    return [path.rpartition("/")[2] for method, path in server.asked if method == "GET" and "/rows-" in path]


def test_what_is_found_is_what_is_found_beside_it_and_rows_come_as_they_are_needed(
    sent: FaultyStore, index: Index, tmp_path: Path
):
    fetch(ADDRESS, tmp_path / "far")
    assert not fetched(sent)
    assert not list((tmp_path / "far").rglob("rows-*"))
    expected, got = found(index.path), found(tmp_path / "far")
    np.testing.assert_array_equal(got.passages, expected.passages)
    np.testing.assert_array_equal(got.scores, expected.scores)
    assert sorted(fetched(sent)) == [f"rows-{number:05d}.sign.safetensors" for number in range(SHARDS)]
    found(tmp_path / "far")
    assert len(fetched(sent)) == SHARDS, "what is there is not fetched again"

    # Of the finer form, shards with a candidate alone.
    two, far = (found(path, 1, rescore="fp32", candidates=4, bottom_k=0) for path in (index.path, tmp_path / "far"))
    np.testing.assert_array_equal(far.scores, two.scores)
    fine = {name for name in fetched(sent) if "fp32" in name}
    assert 0 < len(fine) < SHARDS
    assert verify(tmp_path / "far").shards == 2 * SHARDS


def test_files_of_a_codec_are_there_when_they_are_named(sent: FaultyStore, index: Index, tmp_path: Path):
    fetch(ADDRESS, tmp_path / "far")
    far = list(open_index(tmp_path / "far").files("sign"))
    near = list(index.files("sign"))
    assert len(far) == SHARDS
    assert [(file.name, file.read_bytes()) for file in far] == [(file.name, file.read_bytes()) for file in near]
    assert len(fetched(sent)) == SHARDS


def test_rows_keep_to_their_limit(sent: FaultyStore, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A fp32 row is the largest.
    size, large = ((index.path / f"rows-00000.{codec}.safetensors").stat().st_size for codec in ("sign", "fp32"))
    with pytest.raises(UserError, match="too small"):
        fetch(ADDRESS, tmp_path / "far", f"{3.9 * large / 1000}kB")
    limit = max(4 * large, 6 * size)
    assert limit < SHARDS * large
    fetch(ADDRESS, tmp_path / "far", f"{limit / 1000}kB")
    taken, plain = [], Store.get

    def counted(self: Store, name: str, local: Path) -> None:
        plain(self, name, local)
        taken.append(sum(file.stat().st_size for file in (tmp_path / "far/fetched").glob("rows-*")))

    monkeypatch.setattr(Store, "get", counted)
    for _ in range(2):
        far = scan([Source(open_index(tmp_path / "far"), queries_of(3))], ScanOptions(codec="fp32", top_k=4))
        near = scan([Source(index, queries_of(3))], ScanOptions(codec="fp32", top_k=4))
        np.testing.assert_array_equal(far.passages, near.passages)
    assert 2 * large < max(taken) <= limit * 1.01  # and the notes of sizes
    assert len(fetched(sent)) > SHARDS, "what was dropped is fetched again"


def test_several_who_search_share_what_is_fetched_and_drop_nothing_under_anothers_hands(
    sent: FaultyStore, index: Index, tmp_path: Path
):
    large = (index.path / "rows-00000.fp32.safetensors").stat().st_size
    fetch(ADDRESS, tmp_path / "far", f"{4 * large / 1000}kB")
    expected = found(index.path, rescore="fp32", candidates=20)
    with ThreadPoolExecutor(4) as pool:  # each opens the index for itself, as ranks do
        results = list(pool.map(lambda _: found(tmp_path / "far", rescore="fp32", candidates=20), range(8)))
    for each in results:
        np.testing.assert_array_equal(each.scores, expected.scores)
    fetch(ADDRESS, tmp_path / "whole")
    sent.asked.clear()
    openings = [RemoteShards(tmp_path / "whole") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        files = set(pool.map(lambda each: each.opened("rows-00002.sign.safetensors").rows, openings))
    assert files == {31}
    assert fetched(sent) == ["rows-00002.sign.safetensors"], "one fetches, the others wait for it"


def test_what_lay_there_before_and_what_a_killed_process_left_is_not_taken(
    sent: FaultyStore, index: Index, tmp_path: Path
):
    store = Store(ADDRESS)
    store.write("corpus/origin.json", b"{}")  # of an index that was sent there earlier
    store.write("other/rows-00000.sign.safetensors", b"another index, below")
    fetch(ADDRESS, tmp_path / "far")
    here = {path.name for path in (tmp_path / "far").iterdir()}
    assert here == {path.name for path in index.path.iterdir() if not path.name.startswith("rows-")} | {"remote.json"}
    left = tmp_path / "far/fetched/rows-00000.sign.safetensors.77.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    found(tmp_path / "far")
    assert not left.exists()


def test_what_the_store_does_wrong_is_said_and_leaves_nothing_behind(sent: FaultyStore, tmp_path: Path):
    sent.fault = lambda method, path: "500" if "ids.parquet" in path else None
    with pytest.raises(StoreError, match=r"ids\.parquet"):
        fetch(ADDRESS, tmp_path / "far")
    assert not list(tmp_path.iterdir())
    sent.fault = lambda *_: None
    fetch(ADDRESS, tmp_path / "far")
    sent.fault = lambda method, path: "500" if "rows-00003" in path else None
    with pytest.raises(StoreError, match="rows-00003"):
        found(tmp_path / "far")
    sent.fault = lambda *_: None
    store = Store(ADDRESS)
    damaged = bytearray(store.read("rows-00003.sign.safetensors") or b"")
    damaged[-3] ^= 1
    store._client.put_object(Bucket="indexes", Key="small/rows-00003.sign.safetensors", Body=bytes(damaged))
    fetch(ADDRESS, tmp_path / "again")
    with pytest.raises(ChangedBytesError, match="rows-00003"):
        found(tmp_path / "again")
    assert not (tmp_path / "again/fetched/rows-00003.sign.safetensors").exists()


def test_what_is_no_index_is_refused(sent: FaultyStore, index: Index, tmp_path: Path):
    half = IndexWriter(
        tmp_path / "half", layout=LAYOUT, passages=N, whitening=index.whitening, codecs=["sign"], meta={"corpus": "c"}
    )
    half.begin()
    with pytest.raises(UserError, match="incomplete"):
        send(tmp_path / "half", ADDRESS)
    with pytest.raises(UserError, match="no address"):
        send(index.path, "/mnt/elsewhere")
    with pytest.raises(MissingError, match="no index"):
        fetch("s3://indexes/nothing", tmp_path / "far")
    with pytest.raises(UserError, match="no size"):
        fetch(ADDRESS, tmp_path / "far", "much")
    with pytest.raises(UserError, match="there already"):
        fetch(ADDRESS, tmp_path / "half")
    # Killed while it was sent: without index.json it is none.
    sent.fault = lambda method, path: "500" if method == "PUT" and "rows-00005" in path else None
    with pytest.raises(StoreError):
        send(index.path, ADDRESS)
    sent.fault = lambda *_: None
    with pytest.raises(MissingError, match="no index"):
        fetch(ADDRESS, tmp_path / "far")
    # A name that leads out of the directory is refused.
    send(index.path, ADDRESS)
    Store(ADDRESS).write("files.json", json.dumps(["../../evil"]).encode())
    with pytest.raises(UserError, match="no file below it"):
        fetch(ADDRESS, tmp_path / "far")
