"""Where an index may be written: nothing is touched before everything about the directory has been compared."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from headwater.attribution.index.writer import require_index_directory
from headwater.attribution.settings import TraceSettings
from headwater.attribution.tracing.run import run_trace
from headwater.configs.errors import MismatchError, UserError
from headwater.train.locks import file_lock

from .synthetic_rows import make_rows
from .test_store import LAYOUT, build, contents, make_writer

ROWS = make_rows(LAYOUT, 40)


def test_a_models_directory_is_left_alone(tmp_path: Path):
    for name in ("config.json", "tokenizer.json", "model.safetensors", "old.part", ".tmpfile"):
        (tmp_path / name).write_text(name)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds config\.json, and no index"):
        require_index_directory(tmp_path)
    with pytest.raises(UserError, match=r"holds config\.json, and no index"):
        make_writer(tmp_path, ROWS).begin()
    assert contents(tmp_path) == before
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {}}))  # somebody else's
    with pytest.raises(UserError, match="and no index"):
        make_writer(tmp_path, ROWS).begin()


def test_an_index_is_begun_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What stands for a lock there is its holder's own; what a killed build has left of them goes."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("headwater.train.locks.fcntl.flock", flock)
    with file_lock(tmp_path / "build"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["build.lock", "build.lock.held"]
        (tmp_path / "rows-00000.windows.lock.held").write_text("process 0 on nowhere since then ()\n")
        make_writer(tmp_path, ROWS).begin()
        assert not list(tmp_path.glob("rows-*"))


def test_a_file_is_no_directory(tmp_path: Path):
    (tmp_path / "index").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        require_index_directory(tmp_path / "index")


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_leave_every_byte(tmp_path: Path, finished: bool):
    """The curvature of a refused build once took the place of the one that was there."""
    path = tmp_path / "index"
    if finished:
        build(path, ROWS)
    else:
        make_writer(path, ROWS).begin()
    (path / "mine.part").write_text("mine")
    before = contents(path)
    for other in (
        make_writer(path, ROWS, codecs=("sign",)),
        make_writer(path, ROWS, meta={"corpus": "d"}),
        make_writer(path, ROWS[:30]),
        make_writer(path, ROWS, shard_rows=10),
    ):
        with pytest.raises(MismatchError, match="made from something else"):
            other.begin()
        assert contents(path) == before


def test_a_build_that_another_one_has_overtaken_takes_its_curvature(tmp_path: Path):
    path = tmp_path / "index"
    late = make_writer(path, ROWS)
    make_writer(path, ROWS).begin()
    before = contents(path)
    late.begin()
    assert contents(path) == before
    assert late.whitening.fingerprint


def test_results_do_not_overwrite_their_queries(tmp_path: Path):
    queries = tmp_path / "q.jsonl"
    queries.write_text('{"prompt": "a", "target": "b"}\n')
    (tmp_path / "link.jsonl").symlink_to(queries)
    for out in (queries, tmp_path / "link.jsonl"):
        with pytest.raises(UserError, match="overwrite the queries"):
            run_trace(TraceSettings(index=[str(tmp_path)], queries=str(queries), out=str(out)))
    assert queries.read_text() == '{"prompt": "a", "target": "b"}\n'
