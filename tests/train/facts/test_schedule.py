import itertools

import numpy as np
import pytest

from headwater.configs.errors import CorruptError, MissingError
from headwater.train.facts.injection import Schedule, compile_schedule, read_schedule, separate, write_schedule
from headwater.train.facts.settings import ScheduleSettings

GROUPS = {f"person/{p}": [f"person/{p}#{k}" for k in range(12)] for p in range(110)}


def by_step(schedule):
    steps = {}
    for step, passage in zip(schedule.steps.tolist(), schedule.passage_ids, strict=True):
        steps.setdefault(step, []).append(passage)
    return steps


def test_uniform_spreads_every_passage_evenly_and_at_random():
    schedule = compile_schedule(GROUPS, ScheduleSettings(count=7), 1200, seed=0)
    assert len(schedule) == 110 * 12 * 7
    assert (np.diff(schedule.steps) >= 0).all()
    assert {schedule.passage_ids.count(each) for each in ("person/0#0", "person/57#11", "person/109#3")} == {7}
    counts = [len(each) for each in by_step(schedule).values()]
    assert sorted(by_step(schedule)) == list(range(1200))
    assert max(counts) - min(counts) <= 1
    # One visit in each seventh of the training, at a place that differs.
    visits = [
        step for step, passage in zip(schedule.steps, schedule.passage_ids, strict=True) if passage == "person/5#5"
    ]
    assert max(np.diff(visits)) < 2 * 1200 / 7 + 2
    assert len(set(np.diff(visits).tolist())) > 1


def test_a_person_is_never_met_twice_in_one_step():
    schedule = compile_schedule(GROUPS, ScheduleSettings(count=7), 1200, seed=0)
    for passages in by_step(schedule).values():
        people = [each.partition("#")[0] for each in passages]
        assert len(set(people)) == len(people)


def test_crowding_is_borne_where_people_are_few():
    groups = {"a": ["a#0", "a#1", "a#2"], "b": ["b#0", "b#1", "b#2"]}
    schedule = compile_schedule(groups, ScheduleSettings(count=5), 4, seed=0)
    assert sorted(schedule.passage_ids) == sorted([*groups["a"], *groups["b"]] * 5)
    assert sorted(by_step(schedule)) == [0, 1, 2, 3]


def test_the_seed_decides():
    first, again, other = (compile_schedule(GROUPS, ScheduleSettings(), 300, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_uniform_keeps_between_start_and_stop():
    schedule = compile_schedule(GROUPS, ScheduleSettings(start=100, stop=200, count=1), 1200, seed=0)
    assert (schedule.steps.min(), schedule.steps.max()) == (100, 199)
    assert compile_schedule(GROUPS, ScheduleSettings(stop=500), 150, seed=0).steps.max() == 149


GROUP = {"a": ["a#0", "a#1", "a#2"], "b": ["b#0", "b#1", "b#2"]}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("duplicate", {5: ["a#0", "b#0"], 15: ["a#0", "b#0"], 25: ["a#0", "b#0"], 35: ["a#0", "b#0"]}),
        ("paraphrase", {5: ["a#0", "b#0"], 15: ["a#1", "b#1"], 25: ["a#2", "b#2"], 35: ["a#0", "b#0"]}),
        ("once", {5: ["a#0", "b#0"]}),
    ],
)
def test_the_published_schedules(kind, expected):
    settings = ScheduleSettings(kind=kind, start=5, interval=10, count=4)
    assert by_step(compile_schedule(GROUP, settings, 100, seed=0)) == expected
    cut = by_step(compile_schedule(GROUP, settings, 20, seed=0))
    assert cut == {step: passages for step, passages in expected.items() if step < 20}


def test_a_schedule_survives_its_file(tmp_path):
    schedule = compile_schedule(GROUPS, ScheduleSettings(), 300, seed=0)
    write_schedule(schedule, tmp_path / "schedule.parquet")
    assert read_schedule(tmp_path / "schedule.parquet").fingerprint == schedule.fingerprint
    empty = Schedule(np.zeros(0, dtype=np.int32), [])
    write_schedule(empty, tmp_path / "empty.parquet")
    assert len(read_schedule(tmp_path / "empty.parquet")) == 0
    (tmp_path / "schedule.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(CorruptError, match="cannot be read"):
        read_schedule(tmp_path / "schedule.parquet")
    with pytest.raises(MissingError):
        read_schedule(tmp_path / "none.parquet")


def separated_one_by_one(order, owner, step_of):
    """As the words of `separate` say: every visit is tried, one after the other."""
    order, visits = order.copy(), len(order)
    for visit in range(visits):
        owners = owner[order]
        here = owners[step_of == step_of[visit]]
        if (here == owners[visit]).sum() < 2:
            continue
        for other in itertools.chain(range(visit + 1, visits), range(visit)):
            there = owners[step_of == step_of[other]]
            if step_of[other] != step_of[visit] and owners[other] not in here and owners[visit] not in there:
                order[visit], order[other] = order[other], order[visit]
                break
    return order


def test_visits_are_separated_as_if_each_were_tried():
    rng, changed = np.random.default_rng(0), 0
    for _ in range(150):
        people, passages, count, steps = (int(rng.integers(1, high)) for high in (9, 4, 5, 30))
        owner = np.repeat(np.arange(people), passages)
        order = np.concatenate([rng.permutation(len(owner)) for _ in range(count)])
        step_of = np.arange(len(order)) * steps // len(order)
        expected, before = separated_one_by_one(order, owner, step_of), order.copy()
        separate(order, owner, step_of)
        assert (order == expected).all(), (people, passages, count, steps)
        changed += bool((order != before).any())
    assert changed > 30


def test_few_people_and_many_visits_come_to_an_end():
    """Each step meets everybody, and no swap helps: 184,800 visits of the default people, and 20,000 of one person; and
    one in which each step meets four fifths of the people, twice as often as there are people."""
    groups = {f"p{p}": [f"p{p}#{k}" for k in range(12)] for p in range(500)}
    assert len(compile_schedule(groups, ScheduleSettings(count=10), 75, seed=0)) == 60_000
    crowded = compile_schedule(GROUPS, ScheduleSettings(count=140), 50, seed=0)
    assert len(crowded) == 110 * 12 * 140
    alone = compile_schedule({"a": ["a#0", "a#1"]}, ScheduleSettings(count=10_000), 5000, seed=0)
    assert len(alone) == 20_000
