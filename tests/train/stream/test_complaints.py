"""What users of other training streams complain of in public, where no other test says it (docs/howto/survive.md)."""

from __future__ import annotations

import os
import tempfile
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

from headwater.train.artifacts import RunDir
from headwater.train.stream.corpus import SourceSpan
from headwater.train.stream.order import BLOCK, SequenceOrder
from headwater.train.stream.stream import TrainingStream, open_stream

BATCH = 3


def numbers(stream: TrainingStream, first: int, last: int, ranks: int = 1) -> list[int]:
    """The sequences of the steps [first, last), each rank reading its share, joined."""
    size = stream.global_batch // ranks
    return [
        each.number
        for step in range(first, last)
        for rank in range(ranks)
        for each in stream.sequences(step, rank * size, (rank + 1) * size)
    ]


def test_a_resume_in_a_later_epoch_goes_on_in_it(run: RunDir):
    """streaming 437, 869: it restarted the epoch, or failed."""
    whole = open_stream(run, global_batch=BATCH, seed=0)
    size = whole.base.sequences
    steps = 3 * size // BATCH
    stop = (size + size // 2) // BATCH  # in the middle of the second epoch
    assert stop * BATCH > size
    seen = numbers(whole, 0, stop) + numbers(open_stream(run, global_batch=BATCH, seed=0), stop, steps, ranks=3)
    assert seen == numbers(whole, 0, steps)
    epochs = np.array(seen[: len(seen) // size * size]).reshape(-1, size)
    assert len(epochs) >= 2
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs.tolist())


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_no_rank_is_short_of_a_sequence_where_an_epoch_ends(run: RunDir, ranks: int):
    """streaming 617: a rank that has none waits for ever, as the others do for it."""
    stream = open_stream(run, global_batch=6, seed=0)
    size = stream.base.sequences
    assert size % 6, "the control: an epoch ends within a batch"
    for step in range(2 * size // 6 + 2):
        shares = [
            len(list(stream.sequences(step, rank * 6 // ranks, (rank + 1) * 6 // ranks))) for rank in range(ranks)
        ]
        assert shares == [6 // ranks] * ranks


def test_streams_leave_nothing_that_another_user_or_run_could_meet(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """streaming 332, 767, 824: shared memory and lock files of a killed run, or of somebody else, stood in the way."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a stream asked for shared memory")

    monkeypatch.setattr("_posixshmem.shm_open", refused)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one, other = (open_stream(run, global_batch=BATCH, seed=0) for _ in range(2))
    for step in range(40):  # both at once, neither closed
        assert numbers(one, step, step + 1) == numbers(other, step, step + 1)
    left = list(tmp_path.iterdir())
    assert [path.name for path in left] in ([], [f"headwater-{os.getuid()}"]), "each user's notes are apart"
    assert all(path.stat().st_mode & 0o77 == 0 for path in left)
    with pytest.raises(AssertionError, match="shared memory"):  # the control
        SharedMemory(create=True, size=8)


def test_a_further_source_leaves_the_order_within_the_others():
    """Megatron-Energon 52 calls it impossible to add data without another order of all."""
    before = [SourceSpan("a", 1.0, 0, 300), SourceSpan("b", 2.0, 300, 100)]
    after = [*before, SourceSpan("new", 0.5, 400, 77)]
    orders = [SequenceOrder(spans, seed=4).sequences(np.arange(2 * BLOCK)) for spans in (before, after)]
    for low, high in ((0, 300), (300, 400)):
        one, other = (order[(order >= low) & (order < high)] for order in orders)
        assert len(one) > len(other) > 600
        assert one[: len(other)].tolist() == other.tolist()
    assert orders[0][:BLOCK].tolist() != orders[1][:BLOCK].tolist(), "the new ones come in between"
