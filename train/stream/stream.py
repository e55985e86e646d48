"""The training stream: which tokens stand in which sequence of which step.

Sequences are a pure function of (shards, seed, schedule, step): nothing is remembered between calls, so the order is
the same for any world size and exact on resume. Injected passages stand at the head of a sequence; of its own passages
as many stay as still fit, beginning with another one at each visit, so that none is always the one that gives way.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from headwater.configs.errors import UserError
from headwater.train.artifacts import RunDir, fingerprint
from headwater.train.facts.injection import Schedule, read_schedule
from headwater.train.stream.dealing import deal
from headwater.train.stream.leaving_out import LeftOut, read_exclusions
from headwater.train.stream.order import SequenceOrder, hashed
from headwater.train.stream.passages import PassageSet, open_passages
from headwater.train.stream.skipping import batch_of

STEPS_AHEAD = 32
"""Steps whose shards are fetched from a remote before they are needed."""


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One sequence of a step's global batch.

    tokens: int64 [seq_len], the passages one after the other, then zeros.
    lengths: int32 [passages], their sum is at most seq_len.
    passages: int64 [passages], numbers in the run's `PassageSet`.
    injected: bool [passages].
    number: the sequence of the base corpus that is read here.
    counted: bool [seq_len], the tokens that carry loss where it comes to predicting them; None: all of the passages.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    passages: np.ndarray
    injected: np.ndarray
    number: int
    counted: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Dealt:
    """Injections by step, then by batch index, then as they were dealt: int [injections] each."""

    steps: np.ndarray
    indexes: np.ndarray
    numbers: np.ndarray

    @classmethod
    def none(cls) -> Dealt:
        return cls(*(np.zeros(0, dtype=np.int64) for _ in range(3)))

    def at(self, step: int) -> dict[int, list[int]]:
        """The passages that are injected at a step, by batch index."""
        found: dict[int, list[int]] = {}
        low, high = np.searchsorted(self.steps, [step, step + 1]).tolist()
        for index, number in zip(self.indexes[low:high].tolist(), self.numbers[low:high].tolist(), strict=True):
            found.setdefault(index, []).append(number)
        return found


class TrainingStream:
    """The sequences of any step.

    Args:
        passages: the base corpus first, then the corpora that are injected.
        global_batch: sequences of a step, over all ranks.
        seed: of the order of sequences.
        schedule: injections; its ids are looked up in `passages`.
        exclude: numbers of passages whose visits are dropped, as if never seen, or single visits; no other changes.
        skip: batches whose own sequences are left out, in order; injections stay at their steps.

    Raises:
        UserError: a step's injections do not fit into its batch; or the shards of two windows not into the cache.
        MissingError: the schedule names a passage that does not exist.
    """

    def __init__(
        self,
        passages: PassageSet,
        *,
        global_batch: int,
        seed: int,
        schedule: Schedule | None = None,
        exclude: LeftOut | Collection[int] = (),
        skip: Sequence[range] = (),
    ) -> None:
        self.passages, self.global_batch, self.seed = passages, global_batch, seed
        self.base = passages.corpora[0]
        self.seq_len: int = self.base.manifest["seq_len"]
        self.window: int = self.base.manifest.get("window", 0)
        self.order = SequenceOrder(self.base.sources, seed, self.base.shards.starts, self.window)
        if self.base.shards.is_remote:
            # Of each source, the window that is read and the one that the steps ahead reach into.
            self.base.shards.check_room(2 * self.window * len(self.order.sources) or len(self.base.shards.shards))
        self.left_out = exclude if isinstance(exclude, LeftOut) else LeftOut(exclude)
        self.skip = list(skip)
        self.schedule = schedule
        self._dealt = self._deal(schedule) if schedule is not None and len(schedule) else Dealt.none()

    @property
    def exclude(self) -> frozenset[int]:
        """Numbers of the passages that are never seen."""
        return self.left_out.whole

    @property
    def fingerprint(self) -> str:
        """Of everything that the sequences depend on."""
        return self.fingerprint_with(self.skip)

    def fingerprint_with(self, skip: Sequence[range]) -> str:
        """The fingerprint that this stream would have if it left out these batches instead."""
        schedule = self.schedule.fingerprint if self.schedule is not None else None
        parts = [self.passages.fingerprint, self.global_batch, self.seed, schedule, sorted(self.exclude)]
        skipped = [[each.start, each.stop] for each in skip]
        windows = self.left_out.windows.tolist()
        parts += [self.window] if self.window else []
        return fingerprint(
            [*parts, *([{"skip": skipped}] if skip else []), *([{"exclude": windows}] if windows else [])]
        )

    def epochs(self, steps: int) -> float:
        """Passes over the base corpus in so many steps."""
        return self.order.epochs(steps * self.global_batch)

    def injections(self, step: int) -> list[int]:
        """Numbers of the passages injected at a step, by batch index."""
        dealt, left_out = self._dealt.at(step), self.left_out.at(step + 1)
        return [number for injected in dealt.values() for number in injected if number not in left_out]

    @property
    def injection_steps(self) -> list[int]:
        """Steps with at least one injection, in order."""
        steps = np.unique(self._dealt.steps).tolist()
        return [step for step in steps if not self.left_out or self.injections(step)]

    def sequences(self, step: int, start: int, stop: int) -> list[TrainingSequence]:
        """Sequences start..stop-1 of the global batch of a step."""
        if not 0 <= start <= stop <= self.global_batch:
            raise IndexError(f"sequences {start}..{stop} of a batch of {self.global_batch}")
        places = batch_of(step, self.skip) * self.global_batch + np.arange(start, stop, dtype=np.int64)
        dealt = self._dealt.at(step)
        if self.base.shards.is_remote:
            later = [batch_of(step + 1 + turn, self.skip) for turn in range(STEPS_AHEAD)]
            ahead = np.array(later)[:, None] * self.global_batch + np.arange(start, stop)
            self.base.shards.prefetch(self.order.sequences(ahead.ravel()))  # the nearest step first
        left_out = self.left_out.at(step + 1)
        return [
            self._sequence(number, place, dealt.get(index, []), left_out)
            for index, place, number in zip(
                range(start, stop), places.tolist(), self.order.sequences(places).tolist(), strict=True
            )
        ]

    def _sequence(
        self, number: int, place: int, injected: list[int], left_out: frozenset[int] = frozenset()
    ) -> TrainingSequence:
        packed = self.base.sequence(number)
        lengths = packed.lengths.tolist()
        ends = np.cumsum(packed.lengths).tolist()
        pieces = [(passage, self.passages.tokens(passage), self.passages.counted(passage)) for passage in injected]
        kept = list(range(len(lengths)))
        if injected:
            room = self.seq_len - sum(len(tokens) for _, tokens, _ in pieces)
            kept = keep_what_fits(lengths, room, int(hashed(self.seed, 0xF17, place)) % max(1, len(lengths)))
        for k in kept:
            mine = slice(ends[k] - lengths[k], ends[k])
            flags_k = None if packed.counted is None else packed.counted[mine]
            pieces.append((packed.first_passage + k, packed.tokens[mine], flags_k))
        flags = [True] * len(injected) + [False] * len(kept)
        if left_out:
            stays = [passage not in left_out for passage, _, _ in pieces]
            flags = [flag for flag, stay in zip(flags, stays, strict=True) if stay]
            pieces = [piece for piece, stay in zip(pieces, stays, strict=True) if stay]
        tokens = np.zeros(self.seq_len, dtype=np.int64)
        counted = np.ones(self.seq_len, dtype=bool)
        used = 0
        for _, piece, mask in pieces:
            tokens[used : used + len(piece)] = piece
            if mask is not None:
                counted[used : used + len(piece)] = mask
            used += len(piece)
        return TrainingSequence(
            tokens,
            np.array([len(piece) for _, piece, _ in pieces], dtype=np.int32),
            np.array([passage for passage, _, _ in pieces], dtype=np.int64),
            np.array(flags, dtype=bool),
            number,
            None if counted.all() else counted,
        )

    def _deal(self, schedule: Schedule) -> Dealt:
        """Of each step: the passages at the head of each sequence, dealt in turn from a place that changes with it."""
        numbers = self.passages.numbers_of(schedule.passage_ids)
        lengths = self.passages.lengths_of(numbers).tolist()
        indexes = np.empty(len(numbers), dtype=np.int32)
        begins = np.flatnonzero(np.diff(schedule.steps, prepend=-1)).tolist()
        for begin, end in itertools.pairwise([*begins, len(numbers)]):
            step = int(schedule.steps[begin])
            first = int(hashed(self.seed, 0xDEA1, step)) % self.global_batch
            dealt = deal(lengths[begin:end], self.seq_len, self.global_batch, first)
            if dealt is None:
                raise UserError(
                    f"the injections of step {step} do not fit into its sequences",
                    got=f"{end - begin} passages",
                    expected=f"at most what {self.global_batch} sequences of {self.seq_len} tokens hold",
                    fix="raise train.global_batch or corpus.seq_len, or spread the schedule over more steps",
                )
            indexes[begin:end] = dealt
        order = np.lexsort((indexes, schedule.steps))
        return Dealt(schedule.steps[order], indexes[order], numbers[order])


def keep_what_fits(lengths: list[int], room: int, first: int) -> list[int]:
    """Places of the passages that fit into `room` tokens, tried in turn from `first`; in rising order."""
    kept = []
    for turn in range(len(lengths)):
        place = (first + turn) % len(lengths)
        if lengths[place] <= room:
            kept.append(place)
            room -= lengths[place]
    return sorted(kept)


def open_stream(
    run: RunDir,
    *,
    global_batch: int,
    seed: int,
    exclude: str | None = None,
    skip: Sequence[range] = (),
    injections: bool = True,
) -> TrainingStream:
    """The stream of a run directory whose corpus has been built.

    Args:
        run: the run.
        global_batch: sequences of a step, over all ranks.
        seed: of the order of sequences.
        exclude: a file of what the stream leaves out (`leaving_out.read_exclusions`).
        skip: batches that the stream leaves out (`skipping.read_ranges`).
        injections: False leaves the schedule out: the run beside which an injected one is held.

    Raises:
        MissingError: the corpus is not there, or a file names a passage that does not exist.
        CorruptError: a table of passages is not as it was written.
    """
    passages = open_passages(run)
    for corpus in passages.corpora:
        corpus.check_table()  # a step does not need it, but its ledger is worth nothing without it
    path = run.facts / "schedule.parquet"
    schedule = read_schedule(path) if injections and len(passages.corpora) > 1 else None
    given = read_exclusions(exclude) if exclude else []
    left_out = LeftOut.of(given, passages.numbers_of([each.passage for each in given]))
    return TrainingStream(
        passages, global_batch=global_batch, seed=seed, schedule=schedule, exclude=left_out, skip=skip
    )
