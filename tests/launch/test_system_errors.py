"""What the operating system refuses is one error with exit status 2; what is finished stays, and is gone on with."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from headwater.configs.errors import RefusedError, refusals
from headwater.train.tensor_files import save_tensors

from .whole import INDEX, TRACE, headwater, tree

ASK = [*TRACE[:2], "index=run/index/headwater", "--prompt", "river", "--target", "stone"]
PLACES = {
    "trace: a directory for a file": ([*TRACE, "out=hf"], ["out=hf is a directory", "add a file's name"]),
    "trace: below a file": ([*TRACE, "out=texts.jsonl/t.jsonl"], ["out=texts.jsonl/t.jsonl cannot be written"]),
    "trace: nowhere": ([*TRACE, "out=/proc/nothing/x"], ["out=/proc/nothing/x cannot be written", "another `out`"]),
    "trace: index is a file": ([*TRACE[:2], "index=texts.jsonl", *ASK[3:]], ["texts.jsonl/index.json is missing"]),
    "trace: queries are a directory": ([*TRACE[:3], "queries=hf"], ["queries hf are missing"]),
    "trace: model is a file": ([*ASK, "model.run=texts.jsonl"], ["is not there", "set model.run=DIR"]),
    "index: nowhere": (["index", "index/run", "model.run=run", "out=/proc/nothing/x"], ["cannot be written to"]),
    "index: in a file": (["index", "index/run", "model.run=run", "out=texts.jsonl"], ["texts.jsonl"]),
    "index: run is a file": (["index", "index/run", "model.run=texts.jsonl"], ["texts.jsonl has no checkpoint"]),
    "index: model is a file": (
        ["index", "index/hf", "model.path=texts.jsonl", "corpus.path=texts.jsonl", "out=new"],
        ["texts.jsonl is not a Hugging Face model"],
    ),
    "verify: a file": (["index", "verify", "texts.jsonl"], ["texts.jsonl/index.json is missing"]),
    "pretrain: nowhere": (["pretrain", "config.yaml", "out=/proc/nothing/x"], ["cannot be written to"]),
    "pretrain: beta2": (
        ["pretrain", "config.yaml", "out=new", "optimizer.beta2=1"],
        ["optimizer.beta2 = 1", "< 1"],
    ),
    "pretrain: a directory for a configuration": (["pretrain", "hf", "out=new"], ["there is no configuration file hf"]),
    "corpus: nowhere": (["corpus", "config.yaml", "out=/proc/nothing/x"], ["cannot be written to"]),
    "corpus: no documents but a device": (
        ["corpus", "config.yaml", "out=new", "corpus.sources=[{kind: jsonl, path: /dev/null/x}]"],
        ["has no files"],
    ),
    "export: nowhere": (["export", "run", "/proc/nothing/x"], ["/proc/nothing"]),
    "export: a file": (["export", "run", "texts.jsonl"], ["texts.jsonl is there already"]),
    "import: nowhere": (["import", "hf", "/proc/nothing/x"], ["/proc/nothing"]),
    "inspect: a file": (["corpus", "inspect", "texts.jsonl"], ["texts.jsonl"]),
    "evaluate: a file": (["evaluate", "evaluate/default", "run=texts.jsonl"], ["texts.jsonl"]),
    "report: a file": (["report", "report/default", "run=texts.jsonl"], ["texts.jsonl"]),
    "launch: nowhere": (
        ["launch", "config.yaml", "out=run", "--gpus-per-node", "1", "--output", "/proc/nothing/x"],
        ["/proc/nothing"],
    ),
}


@pytest.fixture(scope="module")
def shared(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything, which refused commands leave as it is."""
    copy = tmp_path_factory.mktemp("refused") / "here"
    shutil.copytree(whole, copy)
    return copy


@pytest.mark.parametrize("name", PLACES)
def test_places(name: str, shared: Path, monkeypatch: pytest.MonkeyPatch):
    arguments, named = PLACES[name]
    monkeypatch.chdir(shared)
    before = tree(shared)
    status, said = headwater(*arguments)
    assert status == 2, said
    assert said.count("error: ") == 1, said
    for fragment in named:
        assert fragment in said, said
    assert tree(shared) == before


@contextmanager
def limited(what: int, amount: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (amount, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


WORK = {
    "corpus": (["corpus", "config.yaml", "out=new"], "new"),
    "pretrain": (["pretrain", "config.yaml", "out=run", "train.hard_stop=6"], "run"),
    "index": (["index", "index/run", "model.run=run", "name=new", *INDEX], "run/index"),
    "trace": ([*TRACE, "out=new.jsonl"], "."),
    "export": (["export", "run", "new"], "."),
}
LIMITS = (0, 3_000, 12_000, 50_000)
"""Bytes that a file may grow to: each stops a command at another file."""


@pytest.mark.parametrize("name", WORK)
def test_a_file_that_may_not_grow(name: str, here: Path):
    """The kernel's limit on a file's size stands for a full disk: writes fail in the middle, at one file or another."""
    command, place = WORK[name]
    ends = []
    for limit in LIMITS:
        with limited(resource.RLIMIT_FSIZE, limit):
            status, said = headwater(*command)
        assert status in (0, 2), said
        if status == 2:
            assert said.count("error: ") == 1, said
            assert "File too large" in said, said
            assert not list(Path(place).rglob("*.part.part")), "no work file of a work file"
        ends.append(status)
    assert ends[0] == 2
    status, said = headwater(*command)
    assert status == 0, said
    assert not [path for path in Path(place).rglob("*.part") if path.parent.name != "checkpoints"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(place)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(here: Path, small_disk: Path):
    for command in (["corpus", "config.yaml", f"out={small_disk}/run"], ["export", "run", f"{small_disk}/hf"]):
        filler = small_disk / "filler"
        filler.write_bytes(bytes(150_000))
        status, said = headwater(*command)
        assert status == 2, said
        assert "No space left on device" in said
        assert "make room" in said
        filler.unlink()
    assert sorted(path.name for path in small_disk.iterdir() if path.name != "run") == []
    assert headwater("corpus", "config.yaml", f"out={small_disk}/run")[0] == 0


def test_few_descriptors(here: Path):
    used = len(os.listdir("/proc/self/fd"))
    for more in (0, 3, 8):
        with limited(resource.RLIMIT_NOFILE, used + more):
            status, said = headwater("corpus", "config.yaml", "out=new")
        assert status in (0, 2), said
        assert status == 0 or "Too many open files" in said, said
    assert headwater("corpus", "config.yaml", "out=new")[0] == 0


def test_tensors_that_do_not_fit_leave_no_file(tmp_path: Path):
    with limited(resource.RLIMIT_FSIZE, 100), pytest.raises(OSError, match="File too large") as error:
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1000)})
    assert error.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_refusals_are_told_by_what_the_system_says():
    with pytest.raises(RefusedError, match=r"(?s)a to b: Read-only.*choose a place"), refusals():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "a", None, "b")
    with pytest.raises(BrokenPipeError), refusals():
        raise BrokenPipeError
    with pytest.raises(ValueError, match="ours"), refusals():
        raise ValueError("ours")
