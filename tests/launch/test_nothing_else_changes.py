"""No command alters, or takes away, a file that it did not write."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from .whole import INDEX, TRACE, headwater

Files = dict[str, tuple[int, int, bytes]]


def files(directory: Path) -> Files:
    """Every file with the number of its inode, the time of its last change and its bytes: one that was replaced by an
    equal one was altered too."""
    found = {}
    for path in directory.rglob("*"):
        if path.is_file() or path.is_symlink():
            status = path.lstat()
            found[str(path.relative_to(directory))] = (status.st_ino, status.st_mtime_ns, path.read_bytes())
    return found


COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "corpus, new": (["corpus", "config.yaml", "out=new"], ("new/",)),
    "corpus, there": (["corpus", "config.yaml", "out=run"], ()),
    "inspect": (["corpus", "inspect", "run"], ()),
    "pretrain": (
        ["pretrain", "config.yaml", "out=run", "train.hard_stop=5", "checkpoint.keep=0"],
        (
            "run/checkpoints/step-00000005/",
            "run/checkpoints/compared.json",
            *(
                f"run/{name}"
                for name in ("config.yaml", "provenance.json", "metrics.jsonl", "probes.parquet", "ledger/")
            ),
        ),
    ),
    "index, new": (["index", "index/run", "model.run=run", "name=new", *INDEX], ("run/index/new/",)),
    "index, there": (["index", "index/run", "model.run=run", "model.step=4", *INDEX], ()),
    "index of documents": (
        ["index", "index/hf", "model.path=hf", "corpus.path=texts.jsonl", "out=new", *INDEX],
        ("new/",),
    ),
    "verify": (["index", "verify", "run/index/headwater"], ()),
    "queries": (
        ["queries", "queries/default", *TRACE[2:4], "out=new.safetensors"],
        ("new.safetensors",),
    ),
    "trace": ([*TRACE, "out=new.jsonl", "scores=new.npy"], ("new.jsonl", "new.npy")),
    "trace, printed": ([*TRACE[:3], "--prompt", "river", "--target", "stone", "tokens=true"], ()),
    "export": (["export", "run", "new"], ("new/",)),
    "import": (["import", "hf", "new"], ("new/",)),
    "plan": (["plan", "config.yaml", "gpus=1"], ()),
    "launch": (["launch", "config.yaml", "out=run", "--gpus-per-node", "1"], ("run/launch.sh", "run/logs/")),
}


@pytest.fixture(scope="module")
def home(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything, with files of somebody else in every directory."""
    copy = tmp_path_factory.mktemp("others") / "here"
    shutil.copytree(whole, copy)
    draw = random.Random(0)
    names = ("notes.txt", "a.part", "rows-00099.sign.safetensors.bak", ".hidden", "model.lock.txt", "steps.parquet.old")
    for directory in [copy, *(path for path in sorted(copy.rglob("*")) if path.is_dir())]:
        # The directories of a corpus, a checkpoint and a model are replaced whole, or read whole.
        if not {"corpus", "checkpoints", "hf", "facts"} & set(directory.relative_to(copy).parts):
            (directory / draw.choice(names)).write_bytes(draw.randbytes(40))
    return copy


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_alters_what_it_writes_alone(name: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    command, written = COMMANDS[name]
    monkeypatch.chdir(home)
    before = files(home)
    status, said = headwater(*command)
    assert status == 0, said
    after = files(home)
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    assert {path for path in changed if not path.startswith(written or ("\0",))} == set()
    assert bool(written) == bool(changed), "the control: what should be written was"
    gone = {path for path in before if path not in after}
    assert not gone
    for each in written:  # for the next command
        path = home / each
        if not any(name.startswith(each) for name in before):
            shutil.rmtree(path) if path.is_dir() else os.remove(path)
