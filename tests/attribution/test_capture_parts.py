"""Captured rows on their way to their owners and to the disk."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from headwater.attribution.capture import sums
from headwater.attribution.capture.sums import MeanRows, read_state
from headwater.attribution.capture.visits import VisitLog, read_visits
from headwater.configs.errors import CorruptError
from headwater.train.artifacts import RunDir
from headwater.train.tensor_files import load_tensors, save_tensors

from ..jobs import call
from .exchanged import exchange, rows_of_rank

PASSAGES, DIMS, WIDTH = 250, 6, 60


def test_each_row_goes_to_its_owner_in_the_order_of_the_batch(tmp_path: Path) -> None:
    assert call(exchange, tmp_path, ranks=2, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    taken = [rows_of_rank(rank) for rank in range(2)]
    passages = np.concatenate([each for each, _ in taken])
    rows_ND = torch.cat([each for _, each in taken])
    for rank in range(2):
        (got, got_ND), (none, none_ND) = torch.load(tmp_path / str(rank), weights_only=False)
        mine = passages // 7 % 2 == rank
        assert 0 < mine.sum() < len(mine)
        assert got.tolist() == passages[mine].tolist()
        assert torch.equal(got_ND, rows_ND[torch.from_numpy(mine)])
        assert (len(none), tuple(none_ND.shape)) == (0, (0, 5))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "default_shard_rows", lambda dims: WIDTH)


class Visited:
    """Visits of a few passages at each of several steps, and their sums in float64."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.sums = torch.zeros(PASSAGES, DIMS, dtype=torch.float64)
        self.visits = torch.zeros(PASSAGES, dtype=torch.int64)

    def step(self, means: list[MeanRows], high: int = PASSAGES) -> None:
        passages = self.rng.integers(0, high, 4)
        rows_ND = torch.from_numpy(self.rng.standard_normal((4, DIMS))).float()
        for each in means:
            each.add(passages.tolist(), rows_ND, 0.5)
        self.sums.index_add_(0, torch.from_numpy(passages), 0.5 * normalize(rows_ND.double(), dim=1))
        self.visits.index_add_(0, torch.from_numpy(passages), torch.ones(4, dtype=torch.int64))

    def require(self, directory: Path) -> None:
        states = [read_state(directory, number) for number in range(-(-PASSAGES // WIDTH))]
        got = {name: torch.cat([state[name] for state in states]) for name in ("sums", "weights", "visits")}
        assert (got["sums"].double() - self.sums).abs().max() < 1e-6
        assert torch.equal(got["visits"], self.visits)
        assert torch.equal(got["weights"], 0.5 * self.visits.double())


def saved(means: list[MeanRows], run: Path, step: int) -> Path:
    """A checkpoint of all holders, written beside its place."""
    extra = run / f"step-{step:08d}.part" / "extra"
    extra.mkdir(parents=True)
    for each in means:
        each.save(extra)
    extra.parent.rename(run / f"step-{step:08d}")
    return run / f"step-{step:08d}" / "extra"


def new_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.stat().st_nlink == 1)


@pytest.mark.usefixtures("narrow")
def test_a_checkpoint_writes_what_has_changed(tmp_path: Path) -> None:
    """Each is whole, whatever was removed before it, also where other holders go on from it."""
    means, visited = [MeanRows(tmp_path / "now", PASSAGES, DIMS, (rank, 2)) for rank in range(2)], Visited()
    written: list[int] = []
    for step in range(1, 31):
        visited.step(means)
        here = saved(means, tmp_path, step)
        written.append(new_bytes(here))
        visited.require(here)
        if step > 1:
            shutil.rmtree(tmp_path / f"step-{step - 1:08d}")
        if step == 15:
            means = [MeanRows(tmp_path / "again", PASSAGES, DIMS)]
            means[0].load(here)
    whole = PASSAGES * (DIMS * 4 + 16)
    assert written[0] > whole
    assert sorted(written)[15] < whole / 3
    assert sum(written) < 15 * whole
    assert len(list(here.iterdir())) < 5 * 30


@pytest.mark.usefixtures("narrow")
def test_where_nothing_can_be_linked_it_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    means, visited = [MeanRows(tmp_path / "now", PASSAGES, DIMS)], Visited()
    for step in range(1, 4):
        visited.step(means)
        here = saved(means, tmp_path, step)
        visited.require(here)
        assert len(list(here.iterdir())) == 5


@pytest.mark.usefixtures("narrow")
def test_a_change_that_does_not_fit_is_named(tmp_path: Path) -> None:
    means, visited = [MeanRows(tmp_path / "now", PASSAGES, DIMS)], Visited()
    for step in (1, 2):
        visited.step(means, high=WIDTH)
        here = saved(means, tmp_path, step)
    (change,) = here.glob("capture-mean-00000-*")
    tensors = load_tensors(change, fix="")
    save_tensors(change, {**tensors, "places": tensors["places"] + WIDTH})
    with pytest.raises(CorruptError, match=rf"{change.name} does not fit its shard"):
        read_state(here, 0)


def test_visits_go_on_with_other_holders(tmp_path: Path) -> None:
    """What two holders had pending is taken over by one, then by three."""
    steps = [(step, np.arange(10) * 7 % 40, torch.randn(10, 3)) for step in range(1, 6)]
    logs = [VisitLog(tmp_path / "capture", (rank, 2)) for rank in range(2)]
    for step, passages, rows_ND in steps:
        for rank, log in enumerate(logs):
            mine = torch.from_numpy(passages // 5 % 2 == rank)
            log.add(step, passages[mine].tolist(), rows_ND[mine], 0.1)
    for name, share in (("one", (0, 1)), ("three", (1, 3))):
        (tmp_path / name).mkdir()
        for log in logs:
            log.save(tmp_path / name)
        after = VisitLog(tmp_path / name / "capture", share)
        after.load(tmp_path / name, 5)
        after.write(5)
        (found,) = read_visits(RunDir.at(tmp_path / name))
        expected = sorted(
            (step, passage, *row)
            for step, passages, rows_ND in steps
            for passage, row in zip(passages.tolist(), rows_ND.tolist(), strict=True)
            if passage // 5 % share[1] == share[0]
        )
        got = zip(found["step"].tolist(), found["passage"].tolist(), found["rows"].tolist(), strict=True)
        assert sorted((step, passage, *row) for step, passage, row in got) == expected
        assert (found["step"].diff() >= 0).all()


def test_visits_of_many_files_are_read_with_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.train.tensor_files.sync", lambda path: None)
    (tmp_path / "capture").mkdir()
    one = {"passage": torch.ones(1, dtype=torch.int64), "step": torch.ones(1, dtype=torch.int32)}
    for number in range(2000):
        state = {"rows": torch.full((1, 2), float(number)), **one, "lr": torch.ones(1, dtype=torch.float64)}
        save_tensors(tmp_path / "capture" / f"visits-{100 * number + 1:08d}.safetensors", state)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = [file["rows"][0, 0].item() for file in list(read_visits(RunDir.at(tmp_path)))]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == list(range(2000))
