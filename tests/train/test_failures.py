"""A disk that fails under one rank: every rank ends soon, the error is said once, nothing is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.train.artifacts import RunDir
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import steps_in

from ..jobs import REFUSED, call, train
from . import failing_disk

SHORT = ("train.hard_stop=6", "checkpoint.every=2", "checkpoint.keep=0")


def losses(run: RunDir) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run.metrics)]


@pytest.fixture(scope="module")
def expected(fresh: Callable[[], Path], config: Path) -> list[tuple[int, float]]:
    run = RunDir.at(fresh())
    train([config, f"out={run.path}", *SHORT], ranks=2, log=run.path / "log")
    return losses(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behind", "rank", "file", "number"),
    [
        ("true", 1, "step-00000004.part/exp_avg-", errno.ENOSPC),
        ("false", 1, "step-00000004.part/exp_avg-", errno.EIO),
        ("true", 0, "step-00000004.part/checkpoint.json", errno.EDQUOT),
    ],
    ids=["another rank, in the background", "another rank", "the first, at the end"],
)
def test_a_checkpoint_that_one_rank_cannot_write(
    behind: str, rank: int, file: str, number: int, fresh: Callable[[], Path], config: Path, expected: list
):
    run = RunDir.at(fresh())
    log = run.path / "log"
    arguments = [str(config), f"out={run.path}", *SHORT, f"checkpoint.asynchronous={behind}"]
    assert call(failing_disk.train, arguments, rank, file, number, ranks=2, log=log, seconds=60) == REFUSED
    said = log.read_text()
    assert said.count("error: ") == 1, said
    assert file.partition("/")[2] in said
    assert {errno.ENOSPC: "No space left", errno.EIO: "Input/output error", errno.EDQUOT: "quota"}[number] in said
    assert f"(rank {rank} on " in said or rank == 0
    assert "Traceback" not in said, said
    assert steps_in(run.checkpoints) == [2], "what was whole stays"
    train(arguments, ranks=2, log=log)  # once it is mended
    assert losses(run) == expected
    assert steps_in(run.checkpoints) == [2, 4, 6]
    assert not list(run.checkpoints.glob("*.part"))


@pytest.mark.slow
def test_what_one_rank_meets_is_the_one_thing_said(fresh: Callable[[], Path], config: Path):
    """The other's broken connection is a line, not a traceback, and waits: a torchrun goes by who ends first."""
    run = RunDir.at(fresh())
    log = run.path / "log"
    arguments = [str(config), f"out={run.path}", *SHORT, f"callbacks.extra=[{failing_disk.__name__}:stale]"]
    call(failing_disk.train, arguments, 0, "no file", 0, ranks=2, log=log, seconds=60)
    said = log.read_text()
    assert said.count("error: ") == 1, said
    assert "/share/gone: Stale file handle" in said
    assert "Traceback" not in said, said


@pytest.mark.slow
def test_machines_that_do_not_share_the_runs_disk_are_refused_before_anything_is_written(
    fresh: Callable[[], Path], config: Path, tmp_path: Path
):
    """Each has its own copy of the corpus under the name of `out`."""
    outs, log = [fresh(), fresh()], tmp_path / "log"
    assert call(trained_apart, [str(config), *SHORT], outs, ranks=2, log=log, seconds=60) == REFUSED
    said = log.read_text()
    assert said.count("error: ") == 1, said
    assert f"{outs[1]} is not the directory that rank 0 writes into (rank 1 on " in said
    assert not any((out / "config.yaml").exists() for out in outs)


def trained_apart(arguments: list[str], outs: list[Path]) -> int:
    from headwater.train import preflight
    from headwater.train.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "SEEN_S", 0.2)
        return main([*arguments, f"out={outs[int(os.environ['RANK'])]}"])
