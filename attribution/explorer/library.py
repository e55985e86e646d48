"""Passages as they are read: texts, documents, sources, and the steps at which they were seen.

Nothing is held of the corpus but what its own reader keeps; ids are looked up row group by row group.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from threading import RLock

import numpy as np

from headwater.configs.errors import UserError
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.ledger_files import read_file
from headwater.train.callbacks.ledger_lookup import seen_steps
from headwater.train.stream.passages import PassageSet, open_passages

KEPT = 20_000
"""Ids whose numbers are remembered, passages whose steps are."""


def document_of(passage: str) -> tuple[str, int | None]:
    """(document, place in it) of a passage id `document#k`."""
    document, mark, place = passage.rpartition("#")
    return (document, int(place)) if mark and place.isdecimal() and len(place) < 10 else (passage, None)


class Library:
    """The passages of a run, or of an index that keeps its own. Safe to ask from several threads."""

    def __init__(self, home: RunDir, ledger: Path | None = None) -> None:
        self.home, self.ledger = home, ledger
        self._lock = RLock()
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._steps: OrderedDict[int, list[int]] = OrderedDict()

    @cached_property
    def passages(self) -> PassageSet:
        return open_passages(self.home)

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """The numbers of those of the ids that are here."""
        wanted = set(ids)
        with self._lock:
            found = {name: self._numbers[name] for name in wanted if name in self._numbers}
            left = wanted - found.keys()
            if left:
                passages = self.passages
                for corpus, start in zip(passages.corpora, passages.starts.tolist(), strict=False):
                    here = {name: start + number for name, number in corpus.find(left).items()} if left else {}
                    found |= here
                    left -= here.keys()
                for name in wanted - left:
                    self._numbers[name] = found[name]
                while len(self._numbers) > KEPT:
                    self._numbers.popitem(last=False)
        return found

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """The texts of those of the ids that are here."""
        with self._lock:
            return {name: self.passages.text(number) for name, number in self.numbers(ids).items()}

    def around(self, passage: str, reach: int = 2) -> list[str]:
        """Ids of the passages of the same document around one, itself included, that are there, in order."""
        document, place = document_of(passage)
        if place is None:
            return [passage]
        near = [f"{document}#{n}" for n in range(max(0, place - reach), place + reach + 1)]
        here = self.numbers(near)
        return [name for name in near if name in here]

    @cached_property
    def sources(self) -> list[str]:
        """Names of what `source_codes` says, `planted` last where passages were injected."""
        corpora = self.passages.corpora
        names = [span.name for span in corpora[0].sources]
        return [*names, "planted"] if len(corpora) > 1 else names

    def source_codes(self, numbers: np.ndarray) -> np.ndarray:
        """The source of each passage, into `sources`, int64 [n]."""
        with self._lock:
            base = self.passages.corpora[0]
            codes = np.full(len(numbers), len(base.sources), np.int64)
            mine = numbers < base.passages
            firsts = np.array([span.first_sequence for span in base.sources])
            codes[mine] = np.searchsorted(firsts, base.sequence_of[numbers[mine]], side="right") - 1
        return codes

    def is_planted(self, number: int) -> bool:
        return number >= self.passages.corpora[0].passages

    @cached_property
    def has_ledger(self) -> bool:
        return self.ledger is not None and any(self.ledger.glob("steps-*.parquet"))

    def seen(self, numbers: Iterable[int]) -> dict[int, list[int]]:
        """The steps at which passages were seen in training, ascending; all that are asked for are read at once."""
        wanted = list(dict.fromkeys(numbers))
        with self._lock:
            left = [number for number in wanted if number not in self._steps]
            if left and self.ledger is not None:
                passages, steps = seen_steps(self.ledger, np.array(left))
                for number in left:
                    start, stop = np.searchsorted(passages, [number, number + 1])
                    self._steps[number] = steps[start:stop].tolist()
            result = {number: self._steps.get(number, []) for number in wanted}
            while len(self._steps) > KEPT:
                self._steps.popitem(last=False)
        return result

    @cached_property
    def last_step(self) -> int:
        """The last step that the ledger knows; 0 without one."""
        files = sorted(self.ledger.glob("steps-*.parquet")) if self.ledger is not None else []
        if not files:
            return 0
        steps = read_file(files[-1])["step"]
        return int(np.max(steps.to_numpy())) if len(steps) else 0


def open_library(home: RunDir) -> Library | None:
    """The passages that lie in a directory; None where there are none.

    Raises:
        UserError: they are damaged.
    """
    if not (home.corpus / "base" / "manifest.json").is_file():
        return None
    library = Library(home, home.ledger if home.ledger.is_dir() else None)
    if not len(library.passages):
        raise UserError(f"{home.corpus} holds no passages")
    return library
