"""Checkpoints: layout-free, whole or passed over, retained as asked, the same when written in the background."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headwater.configs.errors import CorruptError, MismatchError, MissingError
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import KINDS, newest, open_checkpoint, steps_in
from headwater.train.checkpoint_writer import prune
from headwater.train.compared import are_as_compared, note_compared
from headwater.train.model import EMBEDDING

from ..jobs import call, status, train
from .resaving import resave

SHORT = ("train.hard_stop=4", "checkpoint.every=2", "checkpoint.keep=0")


@pytest.fixture(scope="module")
def run(fresh: Callable[[], Path], config: Path) -> RunDir:
    """Four updates, checkpoints after two and four; tests only read it."""
    run = RunDir.at(fresh())
    train([config, f"out={run.path}", *SHORT], log=run.path / "log")
    return run


def copied(run: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(run.path, tmp_path / "run")
    return RunDir.at(tmp_path / "run")


def everything(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def test_holds_whole_tensors_under_canonical_names(run: RunDir):
    checkpoint = open_checkpoint(run.checkpoint(4))
    layer = ["self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"]
    norms = ["input_layernorm", "pre_mlp_layernorm"]
    names = [f"decoder.layers.{n}.{part}.weight" for n in range(4) for part in layer + norms]
    assert checkpoint.names == sorted([*names, "embedding.word_embeddings.weight", "decoder.final_layernorm.weight"])
    assert (checkpoint.step, checkpoint.meta["updates"]) == (4, 4)
    shapes = {"linear_qkv": (64, 32), "linear_proj": (32, 32), "linear_fc1": (96, 32), "linear_fc2": (32, 48)}
    for kind in KINDS:
        for name in checkpoint.names:
            tensor = checkpoint.tensor(kind, name)
            assert tensor.dtype == torch.float32
            assert tensor.abs().max() > 0
            for part, shape in shapes.items():
                assert part not in name or tensor.shape == shape
    assert (checkpoint.tensor("exp_avg_sq", checkpoint.names[0]) >= 0).all()
    checkpoint.verify()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, ["parallel.tensor=2", "parallel.sequence=true"]),
        (2, ["parallel.pipeline=2"]),
        (2, ["zero.stage=3"]),
        (2, ["parallel.tensor=2", "zero.stage=0"]),
        (1, ["zero.stage=2"]),
        (2, ["zero.stage=0"]),
        (4, ["parallel.tensor=2"]),
    ],
    ids=["tp2", "pp2", "dp2 zero3", "tp2 zero0", "zero2", "dp2 zero0", "tp2 x dp2 zero1"],
)
def test_loaded_at_another_layout_and_saved_is_the_same(run, ranks, overrides, tmp_path, config):
    """To the bit: weights, both moments, count of updates and fingerprint. All ranks together have read the moments
    once, and the weights twice (for the forward pass, and for Adam), whatever the number of replicas."""
    arguments = [str(config), f"out={run.path}", *SHORT, *overrides]
    log = tmp_path / "log"
    assert call(resave, arguments, str(tmp_path), ranks=ranks, log=log) == 0, log.read_text()
    original, saved = open_checkpoint(run.checkpoint(4)), open_checkpoint(tmp_path / "step-00000004")
    saved.verify()
    assert saved.fingerprint == original.fingerprint
    assert saved.meta["updates"] == original.meta["updates"]
    assert saved.names == original.names
    for kind in KINDS:
        for name in original.names:
            assert torch.equal(saved.tensor(kind, name), original.tensor(kind, name)), (kind, name)
    read = [json.loads((tmp_path / f"read-{rank}.json").read_text()) for rank in range(ranks)]
    for what, kinds in (("load_weights", KINDS[:1]), ("load_engine", KINDS)):
        files = {original.file(kind, name) for kind in kinds for name in original.names}
        whole = sum(original.tensor(kind, name).nbytes for kind in kinds for name in original.names)
        if ranks > 1 and "parallel.pipeline=2" in overrides:  # both stages keep the tied embedding
            whole += len(kinds) * original.tensor("weight", EMBEDDING).nbytes
        norms = sum(original.tensor(kind, name).nbytes for kind in kinds for name in original.names if "norm" in name)
        headers = sum(file.stat().st_size for file in files) - sum(
            original.tensor(kind, name).nbytes for kind in kinds for name in original.names
        )
        replicated = norms if "parallel.tensor=2" in overrides else 0  # each tensor-parallel rank has every norm
        assert sum(each[what] for each in read) == pytest.approx(whole + replicated + ranks * headers, abs=2000 * ranks)
        assert max(each[what] for each in read) <= 1.15 * whole / ranks + headers + 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [(1, []), (2, []), (2, ["parallel.tensor=2"]), (2, ["parallel.pipeline=2"])],
    ids=["one", "dp2", "tp2", "pp2"],
)
def test_written_in_the_background_is_the_same(run, ranks, overrides, fresh, config):
    """Beside that, retention works in the background too."""
    behind = RunDir.at(fresh())
    arguments = [config, f"out={behind.path}", *SHORT, "checkpoint.asynchronous=true", *overrides]
    train([*arguments, "checkpoint.every=1", "checkpoint.keep=2"], ranks=ranks, log=behind.path / "log")
    assert steps_in(behind.checkpoints) == [3, 4]
    assert sorted(path.name for path in behind.checkpoints.glob("step-*")) == ["step-00000003", "step-00000004"]
    one, other = open_checkpoint(behind.checkpoint(4)), open_checkpoint(run.checkpoint(4))
    one.verify()
    if ranks == 1:
        assert one.fingerprint == other.fingerprint
    for kind in KINDS:
        for name in other.names:
            a, b = one.tensor(kind, name), other.tensor(kind, name)
            assert torch.linalg.vector_norm(a - b) <= 2e-4 * torch.linalg.vector_norm(b)


@pytest.mark.parametrize("harm", ["cut short", "one bit", "file gone", "checkpoint.json cut short"])
def test_a_damaged_checkpoint_is_passed_over_and_named(run, harm, tmp_path):
    damaged = copied(run, tmp_path)
    file = next(damaged.checkpoint(4).glob("exp_avg_sq-*.safetensors"))
    if harm == "cut short":
        file.write_bytes(file.read_bytes()[:-7])
    elif harm == "one bit":
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)
    elif harm == "file gone":
        file.unlink()
    else:
        file = damaged.checkpoint(4) / "checkpoint.json"
        file.write_text(file.read_text()[:-30])
    said: list[str] = []
    found = newest(damaged.checkpoints, say=said.append)
    assert found is not None
    assert found.step == 2
    assert len(said) == 1
    assert str(file) in said[0]
    assert newest(run.checkpoints, say=said.append).step == 4


def test_files_that_have_not_changed_are_not_read_again(run, tmp_path):
    """A bit that turns under an unchanged time is seen by who asks for every byte, and by who has no note."""
    copy = copied(run, tmp_path)
    checkpoint = open_checkpoint(copy.checkpoint(4))
    noted = copy.checkpoints / "compared.json"
    assert set(json.loads(noted.read_text())) >= {"step-00000004"}
    assert are_as_compared(checkpoint.path, checkpoint.meta["files"])
    os.utime(next(checkpoint.path.glob("exp_avg_sq-*.safetensors")))
    assert not are_as_compared(checkpoint.path, checkpoint.meta["files"])
    assert newest(copy.checkpoints).step == 4  # all is read
    note_compared(checkpoint.path, checkpoint.meta["files"])
    assert are_as_compared(checkpoint.path, checkpoint.meta["files"])
    file = next(checkpoint.path.glob("weight-*.safetensors"))
    content, before = bytearray(file.read_bytes()), file.stat()
    content[-100] ^= 1
    file.write_bytes(content)
    assert newest(copy.checkpoints, say=[].append).step == 2
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert newest(copy.checkpoints).step == 4
    assert newest(copy.checkpoints, say=[].append, every_byte=True).step == 2
    for text in ("[]", '{"step-00000004": [1]}', "not JSON"):
        noted.write_text(text)
        assert newest(copy.checkpoints, say=[].append).step == 2


@pytest.mark.slow
def test_training_goes_on_from_the_whole_one(run, tmp_path, config):
    damaged = copied(run, tmp_path)
    file = next(damaged.checkpoint(4).glob("weight-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    train([config, f"out={damaged.path}", *SHORT], log=damaged.path / "again")
    log = (damaged.path / "again").read_text()
    assert f"passing over {damaged.checkpoint(4)}" in log
    assert file.name in log
    assert everything(damaged.checkpoint(4)) == everything(run.checkpoint(4))
    assert [m["loss"] for m in read_metrics(damaged.metrics)] == [m["loss"] for m in read_metrics(run.metrics)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "named"),
    [("model.ffn_hidden=64", "ffn_hidden = 64"), ("seed=4", "another"), ("train.global_batch=8", "global_batch = 8")],
)
def test_another_run_is_refused_and_nothing_changes(run, override, named, config):
    before = everything(run.checkpoints), run.metrics.read_bytes(), everything(run.ledger)
    log = run.path.parent / "refused"
    log.write_text("")
    arguments = [config, f"out={run.path}", *SHORT, "train.hard_stop=6", override]
    assert status(arguments, log=log) == 2
    assert "error:" in log.read_text()
    assert named in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (everything(run.checkpoints), run.metrics.read_bytes(), everything(run.ledger)) == before


def test_what_is_not_there_or_does_not_fit_is_refused(run, tmp_path):
    with pytest.raises(MissingError, match="is not a checkpoint"):
        open_checkpoint(tmp_path)
    damaged = copied(run, tmp_path)
    checkpoint = open_checkpoint(damaged.checkpoint(4))
    with pytest.raises(MismatchError, match="holds no weight of nonsense"):
        checkpoint.tensor("weight", "nonsense")
    next(damaged.checkpoint(4).glob("weight-*")).write_bytes(b"short")
    with pytest.raises(CorruptError, match="cannot be read"):
        checkpoint.tensor("weight", checkpoint.names[0])
    meta = json.loads((damaged.checkpoint(2) / "checkpoint.json").read_text())
    (damaged.checkpoint(2) / "checkpoint.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(MismatchError, match="another format"):
        open_checkpoint(damaged.checkpoint(2))


def test_retention_keeps_the_newest_and_the_fixed(tmp_path):
    for step in (1, 5, 10, 15, 20):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "checkpoint.json").write_text("{}")
    (tmp_path / "step-00000025.part").mkdir()
    prune(tmp_path, 0, [])
    assert steps_in(tmp_path) == [1, 5, 10, 15, 20]
    prune(tmp_path, 2, [5, 20])
    assert steps_in(tmp_path) == [5, 10, 15, 20]
    prune(tmp_path, 1, [5, 20])
    assert steps_in(tmp_path) == [5, 15, 20]


@pytest.mark.slow
def test_fixed_steps_and_those_around_injections_stay(fresh, config):
    from headwater.train.facts.injection import read_schedule

    run = RunDir.at(fresh())
    arguments = ["train.hard_stop=8", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.steps=[0]"]
    train([config, f"out={run.path}", *arguments, "checkpoint.around_injections=true"], log=run.path / "log")
    injected = set(read_schedule(run.facts / "schedule.parquet").steps.tolist())
    around = {near for step in injected for near in (step, step + 1) if near <= 8}
    assert set(steps_in(run.checkpoints)) == around | {0, 8}
    assert open_checkpoint(run.checkpoint(0)).meta["updates"] == 0
