"""What lets an index grow: shards filled window by window, ids that are never all in memory, a bounded manifest."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save

from headwater.attribution.curvature.whitening import BLOCK, Whitening
from headwater.attribution.index import id_tables, ids, shard_writing, windows
from headwater.attribution.index import writer as writer_module
from headwater.attribution.index.errors import CoverageError
from headwater.attribution.index.id_tables import require_lookup, write_id_tables
from headwater.attribution.index.ids import PassageIds, hash_ids
from headwater.attribution.index.reader import open_index
from headwater.attribution.index.records import read_record, record_path, write_record
from headwater.attribution.index.shard_writing import GrowingShard, shard_header
from headwater.attribution.index.shards import shard_name
from headwater.attribution.index.verify import verify
from headwater.attribution.index.windows import Windows, default_shard_rows, fitting_shard_rows
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.search.options import ScanOptions, Source
from headwater.attribution.search.scan import scan
from headwater.configs.errors import CorruptError
from headwater.launch.jobs.stages import STAGES

from ..jobs import Job, call
from .synthetic_rows import make_rows
from .test_store import contents
from .test_store import ids as named

LAYOUT = RowLayout([("layers.0.qkv", 6, 7), ("layers.0.fc1", 9, 5)])
N, SHARD = 1403, 600
"""Shards of three windows, the last of which is shorter, and a last shard of one."""


@pytest.fixture(scope="module")
def rows_ND() -> torch.Tensor:
    return make_rows(LAYOUT, N)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_BYTES", 4 * LAYOUT.dims * BLOCK)
    monkeypatch.setattr(ids, "GROUP_ROWS", 100)
    monkeypatch.setattr(id_tables, "GROUP_ROWS", 100)
    monkeypatch.setattr(id_tables, "RUN", 300)


def make_writer(
    path: Path, shard_rows: int | None = SHARD, passages: int = N, codecs: Sequence[str] = ("int8", "sign")
) -> IndexWriter:
    return IndexWriter(
        path,
        layout=LAYOUT,
        passages=passages,
        whitening=Whitening.none(LAYOUT),
        codecs=codecs,
        meta={"corpus": "c"},
        shard_rows=shard_rows,
    )


def build(path: Path, rows_ND: torch.Tensor, shard_rows: int | None = SHARD) -> Path:
    writer = make_writer(path, shard_rows, len(rows_ND))
    writer.begin()
    for window in writer.pending():
        writer.write(window, rows_ND[slice(*writer.span(window))])
    writer.finish(named(len(rows_ND)))
    return path


@pytest.fixture(scope="module")
def built(rows_ND: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(windows, "WINDOW_BYTES", 4 * LAYOUT.dims * BLOCK)
        patched.setattr(id_tables, "GROUP_ROWS", 100)
        patched.setattr(id_tables, "RUN", 300)
        return build(tmp_path_factory.mktemp("built"), rows_ND)


@pytest.mark.parametrize(("passages", "shard_rows", "rows"), [(1, 1, 1), (1403, 600, 256), (7, 3, 3), (512, 512, 256)])
def test_windows_are_the_passages_once(passages: int, shard_rows: int, rows: int) -> None:
    division = Windows(passages, shard_rows, rows)
    spans = [division.span(window) for window in range(len(division))]
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == passages
    assert all(0 < stop - start <= rows and start // shard_rows == (stop - 1) // shard_rows for start, stop in spans)


def test_shards_grow_with_the_corpus_up_to_their_size() -> None:
    window, row = 2048, 1048
    for passages in (1, 4520, 100_000, 10**7, 4 * 10**8, 10**10):
        rows = fitting_shard_rows(passages, window, row)
        assert rows % window == 0
        assert rows * row <= windows.SHARD_BYTES
        shards = -(-passages // rows)
        assert shards <= passages * row // windows.SHARD_BYTES * 1.001 + 1
    assert fitting_shard_rows(100_000, window, row) == 49 * window, "all in one file"
    assert 1 << 30 < fitting_shard_rows(4 * 10**8, window, row) * row <= 2 << 30


def test_a_shard_is_what_safetensors_would_write(tmp_path: Path, rows_ND: torch.Tensor, built: Path) -> None:
    for file in built.glob("rows-*.safetensors"):
        assert file.read_bytes() == save(load_file(file))
    header, columns, size = shard_header({"code": (torch.uint8, 3), "norm": (torch.float32, None)}, 5)
    assert (len(header) % 8, [(c.name, c.width) for c in columns], size - len(header)) == (
        0,
        [("norm", 4), ("code", 3)],
        35,
    )


def test_windows_in_any_order_give_the_bytes_of_single_ones(tmp_path: Path, built: Path, rows_ND: torch.Tensor) -> None:
    writer = make_writer(tmp_path)
    writer.begin()
    assert writer.pending() == list(range(7))
    for window in torch.randperm(7, generator=torch.Generator().manual_seed(1)).tolist():
        writer.write(window, rows_ND[slice(*writer.span(window))])
    writer.finish(named(N))
    assert contents(tmp_path) == contents(built)
    verify(tmp_path)
    whole = build(tmp_path / "whole", rows_ND, N)
    assert torch.equal(open_index(whole).rows(0, N), open_index(built).rows(0, N))


def test_a_killed_build_goes_on_with_the_next_window(tmp_path: Path, built: Path, rows_ND: torch.Tensor) -> None:
    torch.save(rows_ND, tmp_path / "rows.pt")
    path = tmp_path / "index"
    for moment, left in ((0, [1, 2, 3, 4, 5, 6]), (1, [3, 4, 5, 6]), (2, [5, 6]), (3, [6])):
        make_writer(path).begin()
        job = Job(die_at, str(path), str(tmp_path / "rows.pt"), moment, log=tmp_path / "log")
        assert job.wait() == 0, job.log.read_text()  # it did not end by itself
        writer = make_writer(path)
        writer.begin()
        assert writer.pending() == left
    for window in left:
        writer.write(window, rows_ND[slice(*writer.span(window))])
    writer.finish(named(N))
    assert contents(path) == contents(built)


def die_at(path: str, rows_file: str, moment: int) -> None:
    """Writes two windows, and is killed before the second is noted (0), while its shard gets its name (1), after both
    (2), or when a shard has its record (3)."""
    rows_ND, replace = torch.load(rows_file), os.replace
    writer = make_small_writer(Path(path))
    first, second = writer.pending()[:2]

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(source: Path, target: Path) -> None:
        (die if str(source).endswith("sign.safetensors.unfinished") else replace)(source, target)

    if moment == 3:
        shard_writing.remove = die
    writer.write(first, rows_ND[slice(*writer.span(first))])
    if moment == 0:
        GrowingShard.done = die  # type: ignore[method-assign, assignment]
    if moment == 1:
        os.replace = replace_or_die  # type: ignore[assignment]
    writer.write(second, rows_ND[slice(*writer.span(second))])
    die()


def write_share(path: str, rows_file: str) -> None:
    """Every second window, on one of two ranks: each shard is written by both."""
    rows_ND, rank = torch.load(rows_file), int(os.environ["RANK"])
    writer = make_small_writer(Path(path))
    for window in range(rank, 7, 2):
        writer.write(window, rows_ND[slice(*writer.span(window))])


def test_ranks_write_one_shard_together(tmp_path: Path, built: Path, rows_ND: torch.Tensor) -> None:
    torch.save(rows_ND, tmp_path / "rows.pt")
    writer = make_writer(tmp_path / "index")
    writer.begin()
    log = tmp_path / "log"
    assert call(write_share, str(tmp_path / "index"), str(tmp_path / "rows.pt"), ranks=2, log=log) == 0, log.read_text()
    assert writer.pending() == []
    writer.finish(named(N))
    assert contents(tmp_path / "index") == contents(built)


def make_small_writer(path: Path) -> IndexWriter:
    windows.WINDOW_BYTES = 4 * LAYOUT.dims * BLOCK
    writer = make_writer(path)
    writer.whitening.fingerprint = "unused"
    return writer


def test_what_is_broken_of_an_unfinished_shard_is_made_again(
    tmp_path: Path, built: Path, rows_ND: torch.Tensor
) -> None:
    def begun(*written: int) -> IndexWriter:
        writer = make_writer(tmp_path)
        writer.begin()
        for window in written:
            writer.write(window, rows_ND[slice(*writer.span(window))])
        return writer

    assert begun(0, 2).pending() == [1, 3, 4, 5, 6]
    unfinished = tmp_path / "rows-00000.int8.safetensors.unfinished"
    unfinished.write_bytes(unfinished.read_bytes()[:-1])
    assert begun().pending() == list(range(7))
    assert begun(3, 5, 4).pending() == [0, 1, 2, 6]
    assert begun(1).pending() == [0, 2, 6]
    (tmp_path / "rows-00000.windows").write_text('{"rows": 100, "done": [1]}')
    with pytest.raises(CorruptError, match="does not note windows"):
        begun()
    (tmp_path / "rows-00000.windows").unlink()
    begun(0, 1, 2, 6).finish(named(N))
    assert contents(tmp_path) == contents(built)
    (tmp_path / "lookup.parquet").unlink()
    writer = begun()
    assert writer.pending() == []
    writer.finish(named(N))
    assert contents(tmp_path) == contents(built)


def test_memory_does_not_grow_with_the_shard(
    tmp_path: Path, rows_ND: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of all passages would take eight bytes for each, and the ids in it more."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for module in (shard_writing, writer_module):
        monkeypatch.setattr(module, "fingerprint_file", lambda path: "0" * 32)  # reads blocks of a fixed size
    for name in ("RUN", "GROUP_ROWS"):
        monkeypatch.setattr(id_tables, name, 1000)
    peaks = {}
    for turn, count in enumerate((8, 8, 48)):  # the first time something is imported
        passages = count * BLOCK
        writer = make_writer(tmp_path / str(turn), passages, passages)
        writer.begin()
        tracemalloc.start()
        for window in writer.pending():
            writer.write(window, rows_ND[:BLOCK])
        writer.finish([f"{n}#0" for n in range(at, at + BLOCK)] for at in range(0, passages, BLOCK))
        peaks[passages] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    (few, small), (many, large) = peaks.items()
    assert large - small < 8 * (many - few), peaks
    assert not list(tmp_path.rglob("*.unfinished"))


# Ids


def test_ids_streamed_are_ids_listed(built: Path) -> None:
    index, expected = open_index(built), named(N)
    assert [len(batch) for batch in index.id_batches()] == [100] * 14 + [3]
    assert [name for batch in index.id_batches() for name in batch.to_pylist()] == index.passage_ids == expected
    asked = [N - 1, 0, 99, 100, 99, 701]
    assert index.ids_of(asked) == [expected[n] for n in asked]
    assert index.ids_of([]) == []
    assert index.find([*(expected[n] for n in asked), "land/3", "", "x" * 1000]) == {expected[n]: n for n in asked}
    assert index.find([]) == {}
    assert index.find(expected) == {name: n for n, name in enumerate(expected)}
    with pytest.raises(IndexError, match=f"{N} of {N}"):
        index.ids_of([0, N])
    index.close()
    assert index.ids_of([5]) == [expected[5]]


@pytest.mark.parametrize("sizes", [[1], [100], [101, 1, 0, 250], [3] * 400])
def test_batches_of_any_size(tmp_path: Path, sizes: list[int]) -> None:
    names = [f"döc{n}#{n % 3}" * (n % 4 + 1) for n in range(sum(sizes))]
    parts = np.split(np.array(names, dtype=object), np.cumsum(sizes)[:-1])
    write_id_tables(tmp_path, (pa.array(part, pa.string()) for part in parts), len(names))
    require_lookup(tmp_path, len(names))
    read = PassageIds(tmp_path, len(names))
    assert [name for batch in read.batches() for name in batch.to_pylist()] == names
    assert read.find(names[::7]) == {name: n for n, name in list(enumerate(names))[::7]}


@pytest.mark.parametrize(("first", "second"), [(3, 4), (0, 299), (17, 1402), (650, 350)])
def test_two_passages_of_one_id_are_found(tmp_path: Path, first: int, second: int) -> None:
    """In one run of the sort, and in two."""
    names = named(N)
    names[second] = names[first]
    with pytest.raises(
        CoverageError, match=f"(?s){names[first]}' for passages {min(first, second)} and {max(first, second)}"
    ):
        write_id_tables(tmp_path, [names], N)
    assert not (tmp_path / "lookup.parquet").exists()


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poor(array: pa.Array) -> np.ndarray:
        return hash_ids(array) % np.uint64(50) << np.uint64(57)

    for module in (ids, id_tables):
        monkeypatch.setattr(module, "hash_ids", poor)
    names = named(N)
    write_id_tables(tmp_path, [names], N)
    require_lookup(tmp_path, N)
    assert PassageIds(tmp_path, N).find([*names, "nobody"]) == {name: n for n, name in enumerate(names)}
    names[1300] = names[7]
    with pytest.raises(CoverageError, match="two passages have one id"):
        write_id_tables(tmp_path, [names], N)


def test_a_lookup_of_other_ids_is_found(tmp_path: Path, built: Path) -> None:
    write_id_tables(tmp_path, [named(N)], N)
    table = pq.read_table(tmp_path / "lookup.parquet")
    other = table.set_column(0, "hash", pa.array(np.sort(table["hash"].to_numpy() ^ np.uint64(8)), pa.uint64()))
    for wrong in (
        other,
        table.slice(1),
        table.take(list(range(N))[::-1]),
        pa.concat_tables([table, table.slice(N - 1)]),
    ):
        pq.write_table(wrong, tmp_path / "lookup.parquet")
        with pytest.raises(CoverageError):
            require_lookup(tmp_path, N)


def test_hashes_are_those_that_files_hold() -> None:
    """They are written down: files that stand somewhere were made with them."""
    array = pa.array(["", "a", "a\0", "ab" * 100, "é"], pa.string())
    expected = [16294208416658607535, 6774081908283191102, 17142164871261778134, 9556934992438111887]
    assert hash_ids(array).tolist() == [*expected, 12213114911819052007]
    assert hash_ids(array.slice(1, 3)).tolist() == expected[1:]
    assert len(np.unique(hash_ids(pa.array([f"{n}" for n in range(20_000)])))) == 20_000


# Files


def test_thousands_of_shards_under_a_small_limit_of_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are alike, so that one shard's file stands for all."""
    count, codec = 2000, "int8"
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    writer = make_writer(tmp_path, 1, count, [codec])
    writer.begin()
    writer.write(0, make_rows(LAYOUT, 1))
    (record, *_) = read_record(record_path(tmp_path, 0))
    for number in range(1, count):
        file = tmp_path / shard_name(number, codec)
        os.link(tmp_path / record.file, file)
        write_record(tmp_path, number, [record._replace(file=file.name, start=number, stop=number + 1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        writer.finish(named(count))
        index = open_index(tmp_path)
        assert len(list(index.files(codec))) == count
        found = scan([Source(index, make_rows(LAYOUT, 2))], ScanOptions(top_k=3))
        assert (found.scanned, found.passages[0].tolist()) == (count, [0, 1, 2])
        assert verify(tmp_path).shards == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_manifest_does_not_grow_with_the_shards(built: Path, tmp_path: Path, rows_ND: torch.Tensor) -> None:
    many = build(tmp_path, rows_ND, 20)
    assert abs((many / "index.json").stat().st_size - (built / "index.json").stat().st_size) < 20
    assert len(pq.read_table(many / "shards.parquet")) == 142
    assert default_shard_rows(LAYOUT.dims) == BLOCK


def test_a_chain_of_jobs_sees_how_far_an_index_is(tmp_path: Path, rows_ND: torch.Tensor) -> None:
    """It goes by what each job has added: shards that are whole, and windows of those that are not."""
    place = tmp_path / "an index"
    writer, tell = make_writer(place), STAGES["index"].position
    assert tell is not None

    def told() -> str:
        command = f"echo $({tell(shlex.quote(str(place)))})"
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout

    writer.begin()
    said = [told()]
    for window in writer.pending()[:5]:
        writer.write(window, rows_ND[slice(*writer.span(window))])
        said.append(told())
    expected = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    assert said == [f"{shards} shards and {more} windows\n" for shards, more in expected]
