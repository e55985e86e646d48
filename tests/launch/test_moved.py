"""A run, an index, a corpus work after `mv` and `cp`, from any directory, read-only, for all whom the umask admits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater.attribution.index.manifest import made_from
from headwater.train.artifacts import fingerprint, read_json, write_json
from headwater.train.places import note_place, noted_places
from headwater.train.tensor_files import save_tensors, umask

from .whole import INDEX, TRACE, headwater, tree

ASKED = ["--prompt", "river stone", "--target", "cloud"]


def traced(index: str, *more: str) -> list[dict[str, Any]]:
    """Results of the demo's questions, or fails with what was said."""
    out = Path("traced.jsonl").absolute()
    given = [each for each in TRACE if not each.startswith(("index=", "queries="))]
    queries = ["queries=questions.jsonl"]
    Path("questions.jsonl").write_text('{"prompt": "river stone", "target": "cloud"}\n')
    status, said = headwater(*given, f"index={index}", *queries, f"out={out}", *more)
    assert status == 0, said
    return [json.loads(line) for line in out.read_text().splitlines()]


def refused(index: str, *more: str) -> str:
    status, said = headwater(*TRACE[:2], f"index={index}", *more, *ASKED)
    assert status == 2, said
    return said


def spoil(run: Path) -> None:
    """Makes a run one that nothing can be read from."""
    for path in run.rglob("*"):
        if path.is_file():
            path.write_bytes(b"spoilt")


def test_places_are_found_after_either_has_moved(tmp_path: Path):
    run, index = tmp_path / "a/run", tmp_path / "a/run/index/x"
    assert note_place(run, index) == ["../..", str(run)]
    assert noted_places(["../.."], tmp_path / "b/index/x") == [tmp_path / "b"]
    model = tmp_path / "a/model"
    noted = note_place(model, index)
    assert noted_places(noted, index) == [model]
    assert noted_places(noted, tmp_path / "b/run/index/x") == [tmp_path / "b/model", model]


def test_a_copied_run_is_read_by_itself(here: Path):
    before = traced("run/index/headwater")
    shutil.copytree("run", "deep/er/copy")
    spoil(Path("run"))
    assert traced("deep/er/copy/index/headwater") == before
    seen = [step for record in before for steps in record["proponent_seen_steps"] for step in steps]
    assert seen, "the ledger was read"


def test_a_moved_run_is_traced_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch):
    before = traced("run/index/headwater")
    Path("run").rename("moved")
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert traced("../moved/index/headwater") == before
    # The same index, whatever leads to its run.
    assert headwater("index", "index/run", f"model.run={here}/moved", *INDEX)[0] == 0


def test_an_index_beside_its_run_finds_it(here: Path):
    assert headwater("index", "index/run", "model.run=run", "out=apart/index", *INDEX)[0] == 0
    before = traced("apart/index")
    Path("apart").rename("away")
    assert traced("away/index") == before, "the run stayed"
    Path("all").mkdir()
    Path("away").rename("all/apart")
    shutil.copytree("run", "all/run")
    spoil(Path("run"))
    assert traced("all/apart/index") == before, "the copy that lies as the original did, before the original"
    Path("all/run").rename("elsewhere")
    said = refused("all/apart/index")
    assert "is not readable" not in said
    assert "other weights" in said or "not valid JSON" in said
    shutil.rmtree("run")
    assert "set model.run=DIR" in refused("all/apart/index")
    assert traced("all/apart/index", "model.run=elsewhere") == before
    assert "set model.run to where it is" in refused("all/apart/index", "model.path=hf")


def other_weights(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: value + 0.01 for name, value in tensors.items()}, path, {"format": "pt"})


def test_a_moved_model_is_told_and_checked(here: Path):
    before = traced("hf-index")
    manifest = read_json("hf-index/index.json")
    assert manifest["places"]["path"][0] == "../hf"
    # Without where it was when this index was made: that model is still there.
    write_json("hf-index/index.json", {**manifest, "places": {"path": ["../hf"]}})
    shutil.copytree("hf", "other")
    other_weights(Path("other/model.safetensors"))
    assert "other weights" in refused("hf-index", "model.path=other")
    Path("hf").rename("gone")
    assert "set model.path=DIR" in refused("hf-index")
    assert traced("hf-index", "model.path=gone") == before
    Path("both").mkdir()
    Path("gone").rename("both/hf")
    Path("hf-index").rename("both/hf-index")
    assert traced("both/hf-index") == before
    assert headwater("index", "verify", "both/hf-index")[0] == 0


def test_an_index_of_an_earlier_version_is_read(here: Path):
    """It names its run as it was given then; the run that it lies in comes first."""
    before = traced("run/index/headwater")
    path = Path("run/index/headwater/index.json")
    manifest = read_json(path)
    del manifest["places"]
    manifest["model"]["run"] = "run"
    write_json(path, {**manifest, "fingerprint": fingerprint(made_from(manifest))})
    shutil.copytree("run", "copy")
    spoil(Path("run/checkpoints"))
    assert traced("copy/index/headwater") == before
    assert headwater("index", "index/run", "model.run=copy", *INDEX)[0] == 0, "the same index"


def built(config: str, out: str, *more: str) -> tuple[int, str]:
    return headwater("corpus", config, f"out={out}", *more)


def test_a_corpus_is_gone_on_with_from_another_directory(here: Path, monkeypatch: pytest.MonkeyPatch):
    Path("below").mkdir()
    before = tree(here / "run")
    monkeypatch.chdir("below")
    assert built("../config.yaml", "../run") == (0, "")
    source = f"corpus.sources=[{{kind: jsonl, path: {here}/texts.jsonl}}]"
    assert built("../config.yaml", "../run", source) == (0, "")
    assert tree(here / "run") == before
    (here / "texts.jsonl").rename(here / "below/texts.jsonl")
    assert built("../config.yaml", "../run") == (0, ""), "the same file elsewhere"
    Path("other.jsonl").write_bytes(Path("texts.jsonl").read_bytes())
    named = "corpus.sources=[{kind: jsonl, path: other.jsonl}]"
    assert "another configuration (sources)" in built("../config.yaml", "../run", named)[1], "its name is in the ids"
    with open("texts.jsonl", "a") as file:
        file.write('{"text": "another document"}\n')
    assert "another configuration (sources)" in built("../config.yaml", "../run")[1]
    assert tree(here / "run") == before


def test_adopted_corpora_are_found_after_all_has_moved(here: Path):
    adopted = ["corpus.prebuilt=run/corpus/base", "facts.people=0", "facts.distractors=0"]
    assert built("config.yaml", "second", *adopted)[0] == 0
    Path("tree").mkdir()
    for name in ("run", "second"):
        Path(name).rename(f"tree/{name}")
    assert headwater("corpus", "inspect", "tree/second")[0] == 0
    moved = ["corpus.prebuilt=tree/run/corpus/base", *adopted[1:]]
    assert built("config.yaml", "tree/second", *moved)[0] == 0


@pytest.mark.slow
def test_a_run_is_gone_on_with_from_another_directory(here: Path, monkeypatch: pytest.MonkeyPatch):
    Path("below").mkdir()
    Path("run").rename("moved")
    monkeypatch.chdir("below")
    assert headwater("pretrain", "../config.yaml", "out=../moved", "train.hard_stop=6")[0] == 0
    assert (here / "moved/checkpoints/step-00000006/checkpoint.json").exists()


def modes(directory: Path) -> set[str]:
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_are_for_those_whom_the_umask_admits(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        assert umask() == mask
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    finally:
        os.umask(before)
    assert modes(tmp_path) == {oct(0o666 & ~mask)}


def test_every_file_of_a_run_is(whole: Path):
    assert modes(whole) == {oct(0o666 & ~umask())}


_refusing: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _refusing or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link"):
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        return
    for path in arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]:
        if isinstance(path, str | os.PathLike) and str(Path(path).absolute()).startswith(_refusing[-1]):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Whoever would change something below the directory is told that its file system is mounted read-only."""
    if not getattr(sys, "_headwater_audit", False):
        sys.addaudithook(_audit)
        sys._headwater_audit = True  # type: ignore[attr-defined]
    _refusing.append(str(directory.absolute()))
    before = tree(directory)
    try:
        yield
    finally:
        _refusing.pop()
    assert tree(directory) == before


def test_what_only_reads_reads_what_is_mounted_read_only(here: Path):
    expected = traced("run/index/headwater")
    Path("mount").mkdir()
    for name in ("run", "hf", "hf-index", "texts.jsonl"):
        Path(name).rename(f"mount/{name}")
    with read_only(Path("mount")):
        with pytest.raises(OSError, match="Read-only"):
            Path("mount/run/x").write_text("the control")
        assert traced("mount/run/index/headwater") == expected
        for command in (
            ["index", "verify", "mount/run/index/headwater"],
            ["corpus", "inspect", "mount/run"],
            ["export", "mount/run", "exported"],
            ["index", "index/run", "model.run=mount/run", "out=index", *INDEX],
            ["index", "index/hf", "model.path=mount/hf", "corpus.path=mount/texts.jsonl", "out=index-hf", *INDEX],
        ):
            status, said = headwater(*command)
            assert status == 0, said
