"""The injection schedule, compiled into (step, passage) pairs before training and stored with the run."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headwater.configs.errors import CorruptError, MissingError
from headwater.train.artifacts import atomic_path, fingerprint
from headwater.train.facts.draws import generator
from headwater.train.facts.settings import ScheduleSettings
from headwater.train.tables import read_table, write_table


@dataclass(frozen=True, slots=True)
class Schedule:
    """Visits in the order in which they are dealt to a step's rows.

    steps: int32 [visits], never falling.
    passage_ids: the passage of each visit.
    """

    steps: np.ndarray
    passage_ids: list[str]

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.steps.tolist(), self.passage_ids])

    def __len__(self) -> int:
        return len(self.passage_ids)


def compile_schedule(
    groups: Mapping[str, Sequence[str]], settings: ScheduleSettings, steps: int, seed: int
) -> Schedule:
    """Lays out the visits of passages.

    Args:
        groups: the passage ids of each group (person, record); two of one group are kept out of the same step where
            possible.
        settings: see `ScheduleSettings`.
        steps: steps of the training.
        seed: of the random order of `uniform`.

    Returns:
        The visits at steps below `steps`.
    """
    if settings.kind == "uniform":
        stop = min(settings.stop or steps, steps)
        return spread(groups, settings.count, range(settings.start, max(stop, settings.start)), seed)
    count = 1 if settings.kind == "once" else settings.count
    visits = [
        (
            settings.start + turn * settings.interval,
            members[turn % len(members) if settings.kind == "paraphrase" else 0],
        )
        for turn in range(count)
        for members in groups.values()
        if members
    ]
    visits = [visit for visit in visits if visit[0] < steps]
    return Schedule(np.array([step for step, _ in visits], dtype=np.int32), [passage for _, passage in visits])


def spread(groups: Mapping[str, Sequence[str]], count: int, steps: range, seed: int) -> Schedule:
    """Every passage `count` times: laps over all passages in random order, evenly over the steps."""
    passages = [passage for members in groups.values() for passage in members]
    owner = np.repeat(np.arange(len(groups)), [len(members) for members in groups.values()])
    if not passages or not len(steps):
        return Schedule(np.zeros(0, dtype=np.int32), [])
    rng = generator(seed, 2)
    order = np.concatenate([rng.permutation(len(passages)) for _ in range(count)])
    # int64: visits x steps passes 2**31 for long schedules.
    step_of = np.arange(len(order), dtype=np.int64) * len(steps) // len(order)
    separate(order, owner, step_of)
    return Schedule((steps.start + step_of).astype(np.int32), [passages[place] for place in order.tolist()])


def separate(order: np.ndarray, owner: np.ndarray, step_of: np.ndarray) -> None:
    """Swaps visits, in place, until no step has two of one owner; visits for which no swap helps stay.

    A visit is swapped with the first later one that helps; those before its step have been settled and are taken only
    when nothing later helps. Steps that have the visit's owner already are passed over whole, and where all have it
    nothing is looked for; a step all of whose owners the visit's step has is looked through once: swaps do not change
    that. So the work is that of the swaps that are made, for few owners as for many.

    Args:
        order: int64 [visits], passages.
        owner: int64 [passages].
        step_of: int64 [visits], never falling.
    """
    bounds = np.searchsorted(step_of, np.arange(int(step_of[-1]) + 2)).tolist()
    owners, steps = owner[order].tolist(), step_of.tolist()
    members = [Counter(owners[begin:end]) for begin, end in itertools.pairwise(bounds)]
    lacking = Counter({each: sum(map(bool, members)) for each in set(owners)})
    for met in members:
        lacking.subtract(met.keys())
    useless: set[int] = set()
    for visit, step in enumerate(steps):
        if visit == bounds[step]:
            useless.clear()
        mine = owners[visit]
        if members[step][mine] < 2 or not lacking[mine]:
            continue
        other = find_swap(mine, step, lacking[mine], members, owners, bounds, useless)
        if other is None:
            continue
        there, theirs = steps[other], owners[other]
        order[visit], order[other] = order[other], order[visit]
        owners[visit], owners[other] = theirs, mine
        for place, gone, come in ((step, mine, theirs), (there, theirs, mine)):
            members[place][gone] -= 1
            if not members[place][gone]:
                del members[place][gone]
                lacking[gone] += 1
            members[place][come] += 1
            lacking[come] -= members[place][come] == 1


def find_swap(
    mine: int,
    step: int,
    lacking: int,
    members: list[Counter[int]],
    owners: list[int],
    bounds: list[int],
    useless: set[int],
) -> int | None:
    """The first visit after `step`, then before it, whose owner that step has not, at a step that has not `mine`.

    Args:
        lacking: so many steps have not `mine`; once they have been seen, no other helps.
        useless: steps that have no owner whom `step` has not; what is found of them is added.
    """
    here = members[step]
    for there in itertools.chain(range(step + 1, len(members)), range(step)):
        if mine in members[there] or not members[there]:
            continue
        if there not in useless:
            for other in range(bounds[there], bounds[there + 1]):
                if owners[other] not in here:
                    return other
            useless.add(there)
        lacking -= 1
        if not lacking:
            break
    return None


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Writes schedule.parquet: step int32, passage_id string."""
    import pyarrow as pa

    table = pa.table(
        {"step": pa.array(schedule.steps, pa.int32()), "passage_id": pa.array(schedule.passage_ids, pa.string())}
    )
    with atomic_path(path) as part:
        write_table(table, part, "snappy")


def read_schedule(path: Path) -> Schedule:
    """Reads schedule.parquet.

    Raises:
        MissingError, CorruptError: it is not there, or not a schedule.
    """
    if not path.exists():
        raise MissingError(f"{path} is missing", fix="build the corpus first: `headwater corpus CONFIG`")
    table = read_table(path, ["step", "passage_id"], fix="restore it, or build the corpus again")
    steps, passages = np.asarray(table["step"]), table["passage_id"].to_pylist()
    if steps.dtype.kind != "i" or (steps < 0).any() or (np.diff(steps) < 0).any() or None in passages:
        raise CorruptError(
            f"{path} is not a schedule",
            got=f"steps {steps[:8].tolist()}...",
            expected="steps from 0 on that never fall, each with the id of a passage",
            fix="restore it, or build the corpus again",
        )
    return Schedule(steps.astype(np.int32), passages)
