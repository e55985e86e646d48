"""The injection schedule, compiled into (step, passage) pairs before training and stored with the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headwater.configs.errors import CorruptError, MissingError
from headwater.train.artifacts import atomic_path, fingerprint
from headwater.train.facts.draws import generator
from headwater.train.facts.settings import ScheduleSettings


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

    Args:
        order: int64 [visits], passages.
        owner: int64 [passages].
        step_of: int64 [visits], never falling.
    """
    bounds = np.searchsorted(step_of, np.arange(int(step_of[-1]) + 2))
    owners = owner[order].tolist()
    members = [owners[bounds[step] : bounds[step + 1]] for step in range(len(bounds) - 1)]
    steps = step_of.tolist()
    visits = len(order)
    for visit in range(visits):
        step, mine = steps[visit], owners[visit]
        if members[step].count(mine) < 2:
            continue
        for distance in range(1, visits):
            # Later visits first; those before the step have been settled and are swapped only when nothing later helps.
            other = (visit + distance) % visits
            there, theirs = steps[other], owners[other]
            if there == step or theirs in members[step] or mine in members[there]:
                continue
            order[visit], order[other] = order[other], order[visit]
            owners[visit], owners[other] = theirs, mine
            members[step][members[step].index(mine)] = theirs
            members[there][members[there].index(theirs)] = mine
            break


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Writes schedule.parquet: step int32, passage_id string."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"step": pa.array(schedule.steps, pa.int32()), "passage_id": pa.array(schedule.passage_ids, pa.string())}
    )
    with atomic_path(path) as part:
        pq.write_table(table, part)


def read_schedule(path: Path) -> Schedule:
    """Reads schedule.parquet.

    Raises:
        MissingError, CorruptError: it is not there, or not a schedule.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise MissingError(f"{path} is missing", fix="build the corpus first: `headwater corpus CONFIG`")
    try:
        table = pq.read_table(path, columns=["step", "passage_id"])
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(
            f"{path} is not a schedule", got=error, fix="restore it, or build the corpus again"
        ) from None
    steps, passages = np.asarray(table["step"]), table["passage_id"].to_pylist()
    if steps.dtype.kind != "i" or (steps < 0).any() or (np.diff(steps) < 0).any() or None in passages:
        raise CorruptError(
            f"{path} is not a schedule",
            got=f"steps {steps[:8].tolist()}...",
            expected="steps from 0 on that never fall, each with the id of a passage",
            fix="restore it, or build the corpus again",
        )
    return Schedule(steps.astype(np.int32), passages)
