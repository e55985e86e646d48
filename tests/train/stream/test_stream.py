import numpy as np
import pytest

from headwater.configs.errors import MissingError, UserError
from headwater.train.facts.injection import Schedule, read_schedule
from headwater.train.stream.leaving_out import read_exclusions
from headwater.train.stream.order import hashed
from headwater.train.stream.passages import open_passages
from headwater.train.stream.stream import TrainingStream, keep_what_fits, open_stream

BATCH, STEPS = 3, 40


@pytest.fixture
def stream(run):
    return open_stream(run, global_batch=BATCH, seed=0)


def visits(stream, steps=STEPS):
    """(step, batch index, passage, injected) of everything seen."""
    seen = []
    for step in range(steps):
        for index, each in enumerate(stream.sequences(step, 0, stream.global_batch)):
            seen += [(step, index, int(p), bool(i)) for p, i in zip(each.passages, each.injected, strict=True)]
    return seen


def test_sequences_hold_the_passages_they_name(stream):
    for step in range(STEPS):
        for each in stream.sequences(step, 0, BATCH):
            assert each.tokens.dtype == np.int64
            assert each.tokens.shape == (stream.seq_len,)
            assert len(each.lengths) == len(each.passages) == len(each.injected)
            used = int(each.lengths.sum())
            expected = np.concatenate([stream.passages.tokens(int(number)) for number in each.passages])
            assert each.tokens[:used].tolist() == expected.tolist()
            assert not each.tokens[used:].any()
            # Injected passages stand at the head.
            assert each.injected.tolist() == sorted(each.injected.tolist(), reverse=True)


def test_any_world_size_sees_the_same_sequences(stream, run):
    def dump(sequences):
        return [(each.tokens.tolist(), each.passages.tolist(), each.number) for each in sequences]

    other = open_stream(run, global_batch=BATCH, seed=0)
    for step in (31, 2, 17):  # in any order: there is no state
        whole = dump(stream.sequences(step, 0, BATCH))
        assert whole == [part for index in range(BATCH) for part in dump(other.sequences(step, index, index + 1))]
    assert stream.fingerprint == other.fingerprint


def test_the_seed_changes_the_order(stream, run):
    other = open_stream(run, global_batch=BATCH, seed=1)
    one, two = ([each.number for n in range(20) for each in s.sequences(n, 0, BATCH)] for s in (stream, other))
    assert one != two
    assert stream.fingerprint != other.fingerprint


def test_the_schedule_happens_as_compiled(stream, run):
    schedule = read_schedule(run.facts / "schedule.parquet")
    planned = sorted(
        (step, stream.passages.number_of(each))
        for step, each in zip(schedule.steps.tolist(), schedule.passage_ids, strict=True)
    )
    assert planned
    assert sorted((step, passage) for step, _, passage, injected in visits(stream) if injected) == planned


def test_a_run_without_injections_is_aligned_step_by_step(stream, run):
    bare = open_stream(run, global_batch=BATCH, seed=0, injections=False)
    displaced = 0
    for step in range(STEPS):
        for with_them, without in zip(stream.sequences(step, 0, BATCH), bare.sequences(step, 0, BATCH), strict=True):
            own = with_them.passages[~with_them.injected].tolist()
            assert with_them.number == without.number
            assert not without.injected.any()
            assert set(own) <= set(without.passages.tolist())
            assert own == sorted(own)
            displaced += len(without.passages) - len(own)
    assert displaced > 0


def test_no_passage_of_a_sequence_always_gives_way(stream):
    injected = stream.base.passages
    room = stream.seq_len - int(stream.passages.lengths[injected])
    crowded = 0
    for sequence in range(stream.base.sequences):
        packed = stream.base.sequence(sequence)
        fits = {packed.first_passage + place for place, length in enumerate(packed.lengths) if length <= room}
        sequences = [stream._sequence(sequence, place, [injected]) for place in range(64)]
        assert set(np.concatenate([each.passages[~each.injected] for each in sequences]).tolist()) == fits
        crowded += min(len(each.passages) - 1 for each in sequences) < len(fits)
    assert crowded > 0


def test_excluding_a_passage_drops_its_visits_and_nothing_else(stream, run):
    seen = visits(stream)
    base, injected = seen[0][2], next(each[2] for each in seen if each[3])
    base = next(each[2] for each in seen if not each[3])
    less = TrainingStream(
        stream.passages, global_batch=BATCH, seed=0, schedule=stream.schedule, exclude=[base, injected]
    )
    assert visits(less) == [each for each in seen if each[2] not in (base, injected)]
    assert less.fingerprint != stream.fingerprint


def test_a_window_drops_single_visits_and_nothing_else(stream, run, tmp_path):
    """Steps are counted as in the ledger: update n reads batch n - 1."""
    seen = visits(stream)
    counts = {each[2]: [other[0] + 1 for other in seen if other[2] == each[2]] for each in seen}
    often, steps = max(counts.items(), key=lambda each: len(each[1]))
    injected = next(each[2] for each in seen if each[3] and each[2] != often)
    assert len(steps) > 2
    first, last = steps[1], steps[-2]
    ids = stream.passages.id_of
    (tmp_path / "out.txt").write_text(f"{ids(often)}\t{first}\t{last}\n{ids(injected)}\t1\t{STEPS}\n")
    less = open_stream(run, global_batch=BATCH, seed=0, exclude=str(tmp_path / "out.txt"))
    gone = [each for each in seen if each[2] == injected or (each[2] == often and first <= each[0] + 1 <= last)]
    assert visits(less) == [each for each in seen if each not in gone]
    assert {steps[0], steps[-1]} <= {each[0] + 1 for each in visits(less) if each[2] == often}
    assert [less.injections(step) for step in range(STEPS)] == [
        [number for number in stream.injections(step) if (step, number) not in {(each[0], each[2]) for each in gone}]
        for step in range(STEPS)
    ]
    assert less.exclude == frozenset()
    # Another window is another stream; the same one, written twice, is not.
    (tmp_path / "twice.txt").write_text((tmp_path / "out.txt").read_text() * 2)
    assert (
        open_stream(run, global_batch=BATCH, seed=0, exclude=str(tmp_path / "twice.txt")).fingerprint
        == less.fingerprint
    )
    (tmp_path / "out.txt").write_text(f"{ids(often)}\t{first}\t{last}\n")
    other = open_stream(run, global_batch=BATCH, seed=0, exclude=str(tmp_path / "out.txt"))
    assert len({each.fingerprint for each in (stream, less, other)}) == 3


@pytest.mark.parametrize("line", ["a#0\t3", "a#0\t5\t4", "a#0\t0\t4", "a#0\t1\tx", "a#0\t1\t2\t3", "a#0\t-1\t2"])
def test_a_window_that_is_none_is_named_by_its_line(tmp_path, line):
    (tmp_path / "out.txt").write_text(f"\nb#0\n{line}\n")
    with pytest.raises(UserError, match=r"out\.txt, line 3"):
        read_exclusions(str(tmp_path / "out.txt"))


def test_exclusions_are_read_from_a_file(run, tmp_path):
    passages = open_passages(run)
    path = tmp_path / "out.txt"
    path.write_text("\n".join(passages.ids(4, 6)) + "\n\n")
    assert open_stream(run, global_batch=BATCH, seed=0, exclude=str(path)).exclude == {4, 5}
    path.write_text("no-such-document#0\n")
    with pytest.raises(MissingError, match="no-such-document#0"):
        open_stream(run, global_batch=BATCH, seed=0, exclude=str(path))
    with pytest.raises(UserError, match="cannot be read"):
        open_stream(run, global_batch=BATCH, seed=0, exclude=str(tmp_path / "none"))


def test_injections_that_do_not_fit_are_refused_before_training(stream):
    ids = stream.passages.ids(stream.base.passages, stream.passages.passages)
    crowded = Schedule(np.full(len(ids), 7, dtype=np.int32), ids)
    with pytest.raises(UserError, match="step 7 do not fit"):
        TrainingStream(stream.passages, global_batch=1, seed=0, schedule=crowded)
    unknown = Schedule(np.zeros(1, dtype=np.int32), ["person/nobody#0"])
    with pytest.raises(MissingError, match="nobody"):
        TrainingStream(stream.passages, global_batch=1, seed=0, schedule=unknown)


def test_what_fits_is_kept_whole():
    assert keep_what_fits([5, 5, 5], 10, 0) == [0, 1]
    assert keep_what_fits([5, 5, 5], 10, 2) == [0, 2]
    assert keep_what_fits([9, 3, 4], 8, 0) == [1, 2]
    assert keep_what_fits([9], 8, 0) == []


def test_sequences_outside_the_batch_are_an_error(stream):
    with pytest.raises(IndexError):
        stream.sequences(0, 2, 4)


def dealt_one_by_one(stream: TrainingStream) -> dict[int, list[list[int]]]:
    """What is at the head of each sequence, by lists of every batch index, as the words of `_deal` say."""
    dealt: dict[int, list[list[int]]] = {}
    for step, name in zip(stream.schedule.steps.tolist(), stream.schedule.passage_ids, strict=True):
        if step not in dealt:
            dealt[step] = [[] for _ in range(stream.global_batch)]
            turn = int(hashed(stream.seed, 0xDEA1, step)) % stream.global_batch
        number = stream.passages.number_of(name)
        lengths = [int(stream.passages.lengths[each].sum()) for each in dealt[step]]
        while lengths[turn] + int(stream.passages.lengths[number]) > stream.seq_len:
            turn = (turn + 1) % stream.global_batch
        dealt[step][turn].append(number)
        turn = (turn + 1) % stream.global_batch
    return dealt


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_injections_are_dealt_in_turn(run, batch):
    schedule = read_schedule(run.facts / "schedule.parquet")
    if batch == 1:  # as many as one sequence holds
        keep = np.unique(schedule.steps, return_index=True)[1]
        schedule = Schedule(schedule.steps[keep], [schedule.passage_ids[place] for place in keep])
    stream = TrainingStream(open_passages(run), global_batch=batch, seed=5, schedule=schedule)
    expected = dealt_one_by_one(stream)
    assert stream.injection_steps == sorted(expected)
    for step in range(STEPS):
        heads = [each.passages[each.injected].tolist() for each in stream.sequences(step, 0, batch)]
        assert heads == expected.get(step, [[]] * batch)
        assert stream.injections(step) == [number for head in heads for number in head]
    without = TrainingStream(
        stream.passages, global_batch=batch, seed=5, schedule=schedule, exclude=stream.injections(sorted(expected)[0])
    )
    assert without.injection_steps == [step for step in sorted(expected) if without.injections(step)]


def test_the_table_of_all_passages_is_not_read_for_some(run, tmp_path):
    """A stream of a large corpus looks up what is injected and left out, and holds no table of the rest."""
    (tmp_path / "out.txt").write_text(open_passages(run).id_of(2) + "\n")
    stream = open_stream(run, global_batch=BATCH, seed=0, exclude=str(tmp_path / "out.txt"))
    for step in range(STEPS):
        stream.sequences(step, 0, BATCH)
    assert stream.exclude == {2}
    assert not {"_places", "numbers"} & vars(stream.base).keys()
    assert "lengths" not in vars(stream.passages)
