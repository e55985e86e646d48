"""What somebody else wrote is never written over nor taken away; who writes holds a lock that names it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.configs.errors import UserError
from headwater.train.artifacts import RunDir, read_json, write_json
from headwater.train.corpus.build import build_corpus
from headwater.train.locks import file_lock, sole_writer
from headwater.train.parallel import require_launcher
from headwater.train.preflight import check_inputs
from headwater.train.settings import PretrainSettings

from ..jobs import wait_for
from .stream.conftest import make_texts, settings_for, write_jsonl


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def small(tmp_path: Path) -> PretrainSettings:
    """A corpus of a few texts, not built yet."""
    write_jsonl(tmp_path / "texts.jsonl", make_texts(5))
    cfg = settings_for(tmp_path / "out", tmp_path / "texts.jsonl", people=0)
    cfg.corpus.tokenizer.vocab_size = 320
    return cfg


def refused(cfg: PretrainSettings, named: str) -> None:
    out = Path(cfg.out)
    before = everything(out)
    with pytest.raises(UserError, match=named):
        build_corpus(cfg)
    assert everything(out) == before


FOREIGN = {
    "a tokenizer": ("tokenizer.json", "holds tokenizer.json"),
    "facts": ("facts/mine.jsonl", "holds facts"),
    "documents": ("corpus/mine.jsonl", r"holds corpus/mine\.jsonl"),
    "another program's corpus": ("corpus/base/data.bin", "holds corpus/base"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_directory_with_something_else_in_it_is_left_alone(name, small):
    file, named = FOREIGN[name]
    mine = Path(small.out) / file
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    if name == "a tokenizer":
        small.corpus.tokenizer.path = str(mine)
    refused(small, named)


def test_a_link_that_leads_nowhere_is_something(small):
    Path(small.out).mkdir()
    (Path(small.out) / "tokenizer.json").symlink_to("elsewhere")
    refused(small, "holds tokenizer.json")
    assert (Path(small.out) / "tokenizer.json").is_symlink()


def test_what_does_not_stand_in_the_way_stays(small):
    (Path(small.out)).mkdir()
    (Path(small.out) / "notes.txt").write_text("mine")
    build_corpus(small)
    assert (Path(small.out) / "notes.txt").read_text() == "mine"


def test_an_unfinished_build_takes_away_its_own_tokenizer_alone(small):
    """The configuration is corrected before the base corpus is there: the tokenizer is made again, if it was made."""
    run = RunDir.at(small.out)
    build_corpus(small)
    shutil.rmtree(run.corpus / "base")
    small.corpus.tokenizer.vocab_size = 384
    learnt = run.tokenizer.read_bytes()
    run.tokenizer.write_bytes(b"mine")
    refused(small, "was not made by the build")
    (run.corpus / "made.json").unlink()  # nothing says who made it
    refused(small, "was not made by the build")
    run.tokenizer.write_bytes(learnt)
    write_json(run.corpus / "made.json", {"tokenizer.json": "another"})
    refused(small, "was not made by the build")


def test_a_corrected_build_makes_its_tokenizer_again(small, monkeypatch):
    run = RunDir.at(small.out)
    with monkeypatch.context() as patch:
        patch.setattr("headwater.train.corpus.build.ensure_base", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_corpus(small)
    learnt = run.tokenizer.read_bytes()
    small.corpus.tokenizer.vocab_size = 384
    build_corpus(small)
    assert run.tokenizer.read_bytes() != learnt
    assert not list(run.path.rglob("*.part"))


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "checkpoints", "tensorboard"])
def test_a_training_does_not_write_over_what_no_training_wrote(name, tmp_path):
    run = RunDir.at(tmp_path)
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}"):
        check_inputs(PretrainSettings(), run)
    write_json(run.provenance, [])
    check_inputs(PretrainSettings(), run)


HOLD = """
import sys, time
from pathlib import Path
from headwater.train.locks import file_lock
with file_lock(Path(sys.argv[1])):
    Path(sys.argv[1]).with_name("held").touch()
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the lock `tmp_path`/work."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "work")])
    wait_for(lambda: (tmp_path / "held").exists())
    yield process
    process.kill()
    process.wait()


def test_a_lock_names_its_holder_and_goes_with_it(holder, tmp_path):
    with (
        pytest.raises(UserError, match=rf"(?s)written by another process.*process {holder.pid} on ") as error,
        file_lock(tmp_path / "work", patience=0),
    ):
        pass
    assert os.uname().nodename in str(error.value.got)
    said: list[str] = []

    def kill(line: str) -> None:
        said.append(line)
        holder.send_signal(signal.SIGKILL)

    with file_lock(tmp_path / "work", say=kill):
        assert (tmp_path / "work.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert len(said) == 1
    assert f"waiting for process {holder.pid}" in said[0]
    assert not (tmp_path / "work.lock").exists()


def test_where_files_cannot_be_locked_a_file_stands_for_the_lock(holder, tmp_path, monkeypatch):
    """As on Lustre mounted without flock: a living holder is named, a dead one of this machine is followed."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("headwater.train.locks.fcntl.flock", flock)
    work, claim = tmp_path / "new" / "work", tmp_path / "new" / "work.lock.held"
    with file_lock(work):
        assert claim.read_text().startswith(f"process {os.getpid()} on {os.uname().nodename} since ")
        refusal = f"(?s)process {os.getpid()} on .*remove {claim}"
        with pytest.raises(UserError, match=refusal), file_lock(work, patience=0):
            pass
        assert claim.exists(), "who is refused takes nothing away"
    assert not work.parent.exists()
    work.parent.mkdir()
    for noted in (f"process {holder.pid} on {os.uname().nodename} since", "process 1 on another-machine since"):
        claim.write_text(noted)
        with pytest.raises(UserError, match=noted), file_lock(work, patience=0):
            pass
    holder.kill()
    holder.wait()
    claim.write_text(f"process {holder.pid} on {os.uname().nodename} since")
    with file_lock(work, patience=0):
        assert f"process {os.getpid()} on" in claim.read_text()
    assert list(work.parent.iterdir()) == []


def test_srun_without_torchrun_is_refused_once(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    require_launcher()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    for place in ("0", "3"):
        monkeypatch.setenv("SLURM_PROCID", place)
        with pytest.raises(UserError, match="srun has started 4 processes") as error:
            require_launcher()
        assert error.value.is_said == (place != "0")
    monkeypatch.setenv("RANK", "0")  # torchrun's
    require_launcher()


def test_another_job_is_refused_on_all_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.train.locks.PATIENCE_S", 0)
    with sole_writer(tmp_path / "new" / "run", "train", lambda action: action()):
        with (
            pytest.raises(UserError, match=f"process {os.getpid()}"),
            sole_writer(tmp_path / "new" / "run", "train", lambda action: action()),
        ):
            pass
        with sole_writer(tmp_path / "new" / "run", "train", lambda action: None):  # a rank that is not the first
            pass
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot be written to"), file_lock(tmp_path / "run" / "train"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_run_marks_its_directory_before_it_writes(tmp_path):
    from headwater.train.artifacts import write_provenance

    write_provenance(RunDir.at(tmp_path), world_size=1, origin={"resumed": {"step": 3}})
    (entry,) = read_json(tmp_path / "provenance.json")
    assert entry["resumed"] == {"step": 3}
