import itertools
import json
import random
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headwater.attribution.curvature.files import load_whitening
from headwater.attribution.curvature.sums import AutocorrelationSums
from headwater.attribution.index.errors import (
    ChangedBytesError,
    CoverageError,
    IncompleteIndexError,
    MissingShardError,
    TruncatedShardError,
)
from headwater.attribution.index.reader import open_index
from headwater.attribution.index.recode import recode
from headwater.attribution.index.verify import verify
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.rows.checks import NonFiniteRowsError
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import MismatchError, MissingError, UserError
from headwater.train.artifacts import fingerprint_file

from ..jobs import Job
from .synthetic_rows import make_rows

LAYOUT = RowLayout([("layers.0.qkv", 6, 7), ("layers.0.fc1", 9, 5), ("layers.1.fc2", 4, 8)])
N, SHARD = 205, 30


def make_writer(path, rows_ND, *, codecs=("fp32", "int8"), shard_rows=SHARD, meta=None, layout=LAYOUT):
    curvature = AutocorrelationSums(layout)
    curvature.add(rows_ND)
    whitening = curvature.whitening(0.1)
    return IndexWriter(
        path,
        layout=layout,
        passages=len(rows_ND),
        whitening=whitening,
        codecs=codecs,
        meta=meta or {"corpus": "c", "model": {"kind": "headwater", "step": 600}, "step": 600, "loss": "log_odds"},
        shard_rows=shard_rows,
    )


def build(path, rows_ND, **options):
    writer = make_writer(path, rows_ND, **options)
    writer.begin()
    for number in writer.pending():
        start, stop = writer.span(number)
        writer.write(number, rows_ND[start:stop])
    writer.finish(ids(len(rows_ND)))
    return writer


def ids(count):
    return [f"land/{i // 3}#{i % 3}" for i in range(count)]


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.fixture(scope="module")
def rows_ND():
    return make_rows(LAYOUT, N)


@pytest.fixture
def built(tmp_path, rows_ND):
    build(tmp_path / "index", rows_ND)
    return tmp_path / "index"


def test_what_was_written_is_read(built, rows_ND):
    index = open_index(built)
    assert index.complete
    assert index.passage_ids == ids(N)
    assert index.codecs == ["fp32", "int8"]
    white_ND = index.whitening.apply(rows_ND)
    for start, stop in ((0, N), (7, 8), (29, 31), (25, 130), (N - 1, N), (5, 5)):
        got = index.rows(start, stop)
        assert got.dtype == torch.float32
        assert torch.allclose(got, white_ND[start:stop], rtol=1e-5, atol=1e-6 * float(white_ND.abs().max()))
    assert np.allclose(index.norms, white_ND.norm(dim=1).numpy(), rtol=1e-6)
    assert np.allclose(index.raw_norms, rows_ND.norm(dim=1).numpy(), rtol=1e-6)
    with pytest.raises(UserError, match="beyond the index"):
        index.rows(200, 206)
    checked = verify(built)
    assert (checked.passages, checked.shards, checked.codecs) == (N, 14, ["fp32", "int8"])


def test_ranks_share_the_shards(tmp_path, built, rows_ND):
    writer = make_writer(tmp_path / "other", rows_ND)
    writer.begin()
    pending = writer.pending()
    shares = [pending[rank::3] for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == list(range(7))
    for number in itertools.chain(*shares):
        writer.write(number, rows_ND[slice(*writer.span(number))])
    writer.finish(ids(N))
    assert contents(tmp_path / "other") == contents(built)


def test_rows_of_another_window_are_refused(tmp_path, rows_ND):
    writer = make_writer(tmp_path, rows_ND)
    writer.begin()
    for wrong, match in ((rows_ND[30:59], "differ in number"), (rows_ND[30:60, 1:], "do not fit the row layout")):
        with pytest.raises(MismatchError, match=match):
            writer.write(1, wrong)
    with pytest.raises(IncompleteIndexError, match="lacks 7 of 7 shards"):
        writer.finish(ids(N))


def test_ids_must_be_one_for_each_passage(tmp_path, rows_ND):
    writer = make_writer(tmp_path, rows_ND)
    writer.begin()
    for number in writer.pending():
        writer.write(number, rows_ND[slice(*writer.span(number))])
    for wrong in (ids(N)[:-1], [*ids(N)[:-1], ids(N)[0]]):
        with pytest.raises(CoverageError, match="not one for each passage"):
            writer.finish(wrong)


def test_nan_rows_are_refused_and_name_the_passage(tmp_path, rows_ND):
    rows = rows_ND.clone()
    rows[33, 2] = torch.nan
    writer = make_writer(tmp_path, rows_ND)
    writer.begin()
    with pytest.raises(NonFiniteRowsError, match="rows 33"):
        writer.write(1, rows[30:60])
    assert not list(tmp_path.glob("rows-*"))


def test_a_directory_of_another_index_is_left_alone(built, rows_ND):
    before = contents(built)
    with pytest.raises(MismatchError, match=r"another .*step"):
        build(
            built,
            rows_ND,
            meta={"corpus": "c", "model": {"kind": "headwater", "step": 600}, "step": 700, "loss": "log_odds"},
        )
    assert contents(built) == before
    build(built, rows_ND)
    assert contents(built) == before


def test_a_changed_byte_is_found(built):
    file = built / "rows-00002.int8.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ChangedBytesError, match=r"rows-00002\.int8"):
        verify(built)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_shard_is_one_clear_error(built, keep):
    file = built / "rows-00002.fp32.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    for use in (lambda: verify(built), lambda: open_index(built).rows(60, 61)):
        with pytest.raises(TruncatedShardError, match=r"rows-00002\.fp32"):
            use()
    assert open_index(built).rows(0, 60).shape == (60, LAYOUT.dims)


def test_a_missing_shard_is_named_and_only_it_is_made_again(built, rows_ND):
    before = contents(built)
    (built / "rows-00003.fp32.safetensors").unlink()
    for use in (lambda: verify(built), lambda: open_index(built).rows(0, N)):
        with pytest.raises(MissingShardError, match=r"rows-00003\.fp32"):
            use()
    writer = make_writer(built, rows_ND)
    writer.begin()
    assert writer.pending() == [3]
    with pytest.warns(UserWarning, match="175 of 205 passages"):
        assert not open_index(built).complete
    writer.write(3, rows_ND[90:120])
    writer.finish(ids(N))
    assert contents(built) == before


def test_coverage_and_settings_are_checked(built):
    manifest, table = json.loads((built / "index.json").read_text()), pq.read_table(built / "shards.parquet")
    lines = table.to_pylist()
    for changed, match in (
        ([*lines[:3], *lines[4:]], "passage 90 is missing"),
        ([lines[2], *lines], "passage 60 is present twice"),
    ):
        pq.write_table(table.from_pylist(changed), built / "shards.parquet")
        tables = manifest["tables"] | {"shards.parquet": fingerprint_file(built / "shards.parquet")}
        (built / "index.json").write_text(json.dumps(manifest | {"tables": tables}))
        with pytest.raises(CoverageError, match=match):
            verify(built)
    pq.write_table(table, built / "shards.parquet")
    manifest["tables"]["shards.parquet"] = fingerprint_file(built / "shards.parquet")
    for part, error, match in (
        ({"model": "another"}, MismatchError, r"settings .* were changed"),
        ({"tables": manifest["tables"] | {"ids.parquet": "0" * 32}}, ChangedBytesError, r"ids\.parquet"),
        ({"tables": manifest["tables"] | {"shards.parquet": "0" * 32}}, ChangedBytesError, r"shards\.parquet"),
        ({"format": "headwater-index/1"}, MismatchError, r"(?s)another format .*headwater index CONFIG"),
    ):
        (built / "index.json").write_text(json.dumps(manifest | part))
        with pytest.raises(error, match=match):
            verify(built)


def test_another_curvature_is_refused(built, rows_ND):
    curvature = AutocorrelationSums(LAYOUT)
    curvature.add(rows_ND[:50])
    curvature.whitening(0.1).save(built / "curvature.safetensors")
    with pytest.raises(MismatchError, match="another curvature"):
        _ = open_index(built).whitening


def test_an_index_is_recoded(tmp_path, built, rows_ND):
    index = open_index(built)
    recode(index, tmp_path / "other", ["sign", "int8"])
    other = open_index(tmp_path / "other")
    verify(tmp_path / "other")
    assert other.codecs == ["int8", "sign"]
    assert other.passage_ids == index.passage_ids
    assert torch.equal(other.rows(0, N, "int8"), index.rows(0, N, "int8"))
    assert np.array_equal(other.norms, index.norms)
    assert other.manifest["model"] == index.manifest["model"]


def test_no_index_there(tmp_path):
    with pytest.raises(MissingError, match="headwater index"):
        open_index(tmp_path)


def write_part(path, rows_file, rank, world):
    """Writes every `world`th shard that an index still lacks."""
    rows_ND = torch.load(rows_file)
    writer = IndexWriter(
        path,
        layout=LAYOUT,
        passages=len(rows_ND),
        whitening=load_whitening(f"{path}/curvature.safetensors", LAYOUT),
        codecs=["fp32", "int8"],
        meta={"corpus": "c", "model": {"kind": "headwater", "step": 600}, "step": 600, "loss": "log_odds"},
        shard_rows=5,
    )
    for number in writer.pending()[rank::world]:
        writer.write(number, rows_ND[slice(*writer.span(number))])


@pytest.mark.slow
def test_killed_builds_end_with_the_same_bytes(tmp_path, rows_ND):
    """Two kills -9 at random moments, on one rank and on two; this process finishes what they left."""
    build(tmp_path / "whole", rows_ND, shard_rows=5)
    torch.save(rows_ND, tmp_path / "rows.pt")
    killed, draw = tmp_path / "killed", random.Random(3)

    def records():
        return len(list(killed.glob("rows-*.json")))

    for world in (1, 2):
        make_writer(killed, rows_ND, shard_rows=5).begin()
        arguments = str(killed), str(tmp_path / "rows.pt")
        builders = [Job(write_part, *arguments, rank, world, log=tmp_path / "log") for rank in range(world)]
        enough = records() + draw.randint(1, 6)
        while records() < enough:
            assert all(job.running for job in builders), "a builder ended before it could be killed"
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))
        for job in builders:
            job.signal(signal.SIGKILL)
            job.wait()
        with pytest.warns(UserWarning, match="incomplete"):
            assert not open_index(killed).complete
    writer = build(killed, rows_ND, shard_rows=5)
    assert writer.complete
    assert contents(killed) == contents(tmp_path / "whole")
    verify(killed)
