"""Shards in an object store, over a real S3 protocol server on loopback."""

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from headwater.configs.errors import CorruptError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.mosaic import fetch
from headwater.train.stream.corpus import open_corpus
from headwater.train.stream.passages import open_passages
from headwater.train.stream.stream import open_stream

from ...jobs import call
from .conftest import settings_for

moto_server = pytest.importorskip("moto.server", reason="needs moto (extra: dev)")


@pytest.fixture(scope="module")
def bucket():
    """A bucket client at a server of its own, with the environment that reaches it."""
    boto3 = pytest.importorskip("boto3")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (
            ("S3_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            environment.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="corpora")
        yield client
    server.stop()


@pytest.fixture(scope="module")
def remote(bucket, built, tmp_path_factory):
    """The settings of a run whose shards are in the bucket."""
    cfg = settings_for(tmp_path_factory.mktemp("remote") / "run", Path(built.corpus.sources[0].path))
    cfg.corpus.remote = "s3://corpora/small"
    build_corpus(cfg)
    return cfg


def test_shards_are_uploaded_and_the_run_keeps_the_tables(remote, bucket):
    keys = {entry["Key"] for entry in bucket.list_objects_v2(Bucket="corpora")["Contents"]}
    base = RunDir.at(remote.out).corpus / "base"
    shards = json.loads((base / "manifest.json").read_text())["shards"]
    assert {f"small/{shard['file']}" for shard in shards} < keys
    assert {"small/index.json", "small/manifest.json", "small/passages.parquet"} < keys
    assert not list(base.glob("*/*.mds"))


def test_a_remote_corpus_is_the_local_one(remote, built, tmp_path):
    there = open_corpus(RunDir.at(remote.out).corpus / "base", cache=tmp_path / "cache")
    here = open_corpus(RunDir.at(built.out).corpus / "base")
    assert there.fingerprint == here.fingerprint
    for number in range(here.sequences):
        assert np.array_equal(there.sequence(number).tokens, here.sequence(number).tokens)
    assert len(list((tmp_path / "cache").rglob("*.mds"))) == len(here.manifest["shards"])


def sums(out: str) -> list[int]:
    stream = open_stream(RunDir.at(out), global_batch=3, seed=0)
    return [each.tokens.sum().item() for step in range(30) for each in stream.sequences(step, 0, 3)]


def read_all(out: str, directory: str, environment: dict[str, str]) -> None:
    with mock.patch.dict(os.environ, environment):
        (Path(directory) / os.environ["RANK"]).write_text(json.dumps(sums(out)))


@pytest.mark.slow
def test_processes_of_one_machine_share_the_cache(remote, built, tmp_path):
    """Started together on an empty cache in which a killed process left its lock and half a file."""
    base = RunDir.at(remote.out).corpus / "base"
    shard = json.loads((base / "manifest.json").read_text())["shards"][0]["file"]
    (base / shard).parent.mkdir(exist_ok=True)
    (base / f"{shard}.lock").touch()
    (base / f"{shard}.999999.part").write_bytes(b"half")
    environment = {name: value for name, value in os.environ.items() if name.startswith(("S3_", "AWS_"))}
    log = tmp_path / "log"
    assert call(read_all, remote.out, str(tmp_path), environment, ranks=2, log=log) == 0, log.read_text()
    assert [json.loads((tmp_path / rank).read_text()) for rank in "01"] == [sums(built.out)] * 2


def test_a_shard_damaged_in_the_store_is_named(remote, bucket, tmp_path):
    cache = tmp_path / "cache"
    corpus = open_corpus(RunDir.at(remote.out).corpus / "base", cache=cache)
    file = corpus.manifest["shards"][1]["file"]
    whole = bucket.get_object(Bucket="corpora", Key=f"small/{file}")["Body"].read()
    try:
        bucket.put_object(Bucket="corpora", Key=f"small/{file}", Body=whole[:-9])
        with pytest.raises(CorruptError, match=file):
            corpus.shards.verify()
    finally:
        bucket.put_object(Bucket="corpora", Key=f"small/{file}", Body=whole)
    corpus.shards.verify()  # the damaged copy in the cache is fetched again
    data = bytearray(whole)
    data[-1] ^= 1
    cached = cache / corpus.fingerprint / file
    cached.write_bytes(data)
    corpus.shards.verify()
    assert cached.read_bytes() == whole


def test_what_is_not_there_is_a_clear_error(bucket, tmp_path):
    with pytest.raises(UserError, match=r"s3://corpora/none\.mds cannot be downloaded") as caught:
        fetch("s3://corpora/none.mds", tmp_path / "none.mds")
    assert "S3_ENDPOINT_URL" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_upload_to_nowhere_is_a_clear_error_and_goes_on(bucket, built, tmp_path):
    cfg = settings_for(tmp_path / "run", Path(built.corpus.sources[0].path))
    cfg.corpus.remote = "s3://no-such-bucket/small"
    with pytest.raises(UserError, match="cannot be uploaded to s3://no-such-bucket"):
        build_corpus(cfg)
    assert (RunDir.at(cfg.out).corpus / "base.shards" / "manifest.json").exists(), "the work so far is kept"
    cfg.corpus.remote = "s3://corpora/later"
    build_corpus(cfg)
    assert open_passages(RunDir.at(cfg.out)).corpora[0].manifest["remote"] == cfg.corpus.remote


def test_a_run_adopts_a_corpus_from_the_store(remote, built, bucket, tmp_path):
    cfg = settings_for(tmp_path / "run", Path("never-read.jsonl"), people=0)
    cfg.corpus.prebuilt = "s3://corpora/small"
    cfg.corpus.cache = str(tmp_path / "cache")
    build_corpus(cfg)
    ours = open_corpus(RunDir.at(cfg.out).corpus / "base")
    theirs = open_corpus(RunDir.at(built.out).corpus / "base")
    assert ours.fingerprint == theirs.fingerprint
    assert np.array_equal(ours.sequence(1).tokens, theirs.sequence(1).tokens)
    assert list((tmp_path / "cache").rglob("*.mds"))
    assert not list(Path(cfg.out).rglob("*.mds"))


def test_shards_are_fetched_before_they_are_read(remote, built, bucket, tmp_path):
    cfg = settings_for(tmp_path / "run", Path("never-read.jsonl"), people=0)
    cfg.corpus.prebuilt, cfg.corpus.cache, cfg.corpus.window = "s3://corpora/small", str(tmp_path / "cache"), 1
    build_corpus(cfg)
    stream = open_stream(RunDir.at(cfg.out), global_batch=1, seed=0)
    shards = stream.base.shards
    numbers = [stream.sequences(step, 0, 1)[0].number for step in range(20)]
    read = np.searchsorted(shards.starts, numbers, side="right") - 1
    shards._fetchers.shutdown()
    fetched = {int(path.parent.name) for path in (tmp_path / "cache").rglob("*.mds")}
    assert set(read.tolist()) < fetched
    # One shard after the other: those of the steps ahead, not the whole corpus.
    assert len(fetched) < len(shards.shards)


def read_within(out: str, rank: int) -> tuple[list[int], int]:
    """The sums of one reader's sequences, of more than an epoch, and the most that the cache ever took meanwhile."""
    stream = open_stream(RunDir.at(out), global_batch=2, seed=0)
    found, most = [], 0
    for step in range(stream.base.sequences // 2 + 4):
        found += [each.tokens.sum().item() for each in stream.sequences(step, rank, rank + 1)]
        sizes = []
        for file in stream.base.shards.cache.directory.glob("*/*.mds*"):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(file.stat().st_size)
        most = max(most, sum(sizes))
    return found, most


def test_the_cache_keeps_to_its_bytes_with_two_readers(built, bucket, tmp_path):
    cfg = settings_for(tmp_path / "run", Path(built.corpus.sources[0].path), people=0)
    cfg.corpus.tokenizer.path = str(RunDir.at(built.out).tokenizer)
    cfg.corpus.remote, cfg.corpus.shard_tokens, cfg.corpus.window = "s3://corpora/many", 1500, 1
    cfg.corpus.cache = str(tmp_path / "looked")
    build_corpus(cfg)
    base = open_corpus(RunDir.at(cfg.out).corpus / "base")
    sizes = [entry["bytes"] for entry in base.manifest["shards"]]
    limit = 3 * max(sizes)
    assert sum(sizes) > 2 * limit
    # An original in the cache: of the first shard that is read, so that it would be the first to go.
    first = int(np.searchsorted(base.shards.starts, open_stream(RunDir.at(cfg.out), global_batch=2, seed=0).sequences(
        0, 0, 1)[0].number, side="right")) - 1  # fmt: skip
    # That stream may still be fetching ahead: the cache that is measured is another one.
    cfg.corpus.cache = str(tmp_path / "cache")
    build_corpus(cfg)
    base = open_corpus(RunDir.at(cfg.out).corpus / "base")
    original = base.shards.cache.directory / base.manifest["shards"][first]["file"]
    fetch(f"s3://corpora/many/{base.manifest['shards'][first]['file']}", original)
    cfg.corpus.cache_bytes = f"{limit} B"
    build_corpus(cfg)  # the limit of a corpus that was built before
    with ThreadPoolExecutor(2) as readers:
        bounded = list(readers.map(read_within, [cfg.out] * 2, range(2)))
    cfg.corpus.cache_bytes = ""
    build_corpus(cfg)
    for rank, (found, most) in enumerate(bounded):
        assert found == read_within(cfg.out, rank)[0]
        # Beside the limit: the original, and a few bytes of notes.
        assert max(sizes) < most <= limit + original.stat().st_size + 10 * len(sizes)
    assert read_within(cfg.out, 0)[1] > limit + original.stat().st_size, "without a limit the cache keeps all"
    assert original.exists()


def test_a_limit_that_two_windows_do_not_fit_into_is_refused(remote, bucket, tmp_path):
    cfg = settings_for(tmp_path / "run", Path("never-read.jsonl"), people=0)
    cfg.corpus.prebuilt, cfg.corpus.window, cfg.corpus.cache_bytes = "s3://corpora/small", 2, "30kB"
    build_corpus(cfg)
    with pytest.raises(UserError, match=r"cache_bytes is too small(.|\n)*4 shards"):
        open_stream(RunDir.at(cfg.out), global_batch=1, seed=0)


@pytest.mark.parametrize(("cache_bytes", "window", "key"), [("much", 4, "cache_bytes"), ("2GB", 0, "window")])
def test_a_limit_is_bytes_and_wants_a_window(cache_bytes, window, key):
    settings = CorpusSettings(cache_bytes=cache_bytes, window=window)
    assert [problem.key for problem in settings.problems()] == ["cache_bytes"]
    assert key in str(next(settings.problems()))
