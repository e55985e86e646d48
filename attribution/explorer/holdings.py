"""What there is to look at: runs, indexes and files of results, found by name and opened when they are asked for.

holdings = find(["runs/demo"])
holdings.sets["headwater"].open().answer(0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.attribution.evaluation.ranking import read_rankings
from headwater.attribution.evaluation.table import LABELS, ordered
from headwater.attribution.explorer.facts import Facts
from headwater.attribution.explorer.grammar import Columns
from headwater.attribution.explorer.library import Library, document_of, open_library
from headwater.attribution.explorer.loading import read_ranking, read_results
from headwater.attribution.explorer.measures import Measure, measures_of
from headwater.attribution.explorer.sets import AnswerSet
from headwater.attribution.index.manifest import model_places
from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.artifacts import RunDir, read_json


@dataclass
class Home:
    """A directory that sets and indexes belong to: its probes and its passages."""

    path: Path
    facts: Facts

    @cached_property
    def library(self) -> Library | None:
        return open_library(RunDir.at(self.path))

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def last_step(self) -> int:
        """The last step of training that anything here knows of, at least 1."""
        steps = self.facts.steps
        ledger = self.library.last_step if self.library is not None else 0
        return max(1, ledger, int(steps[-1]) if len(steps) else 0)


@dataclass
class SetEntry:
    """A set of answers, read when it is first opened."""

    name: str
    label: str
    kind: str
    path: Path
    home: Home | None
    _lock: RLock = field(default_factory=RLock, repr=False)
    _opened: OpenedSet | None = None

    def open(self) -> OpenedSet:
        """Reads the file, once.

        Raises:
            MissingError, CorruptError: it is not what it should be.
        """
        with self._lock:
            if self._opened is None:
                self._opened = OpenedSet(self._read(), self.home)
            return self._opened

    @property
    def opened(self) -> OpenedSet | None:
        """The set if it has been opened before."""
        return self._opened

    def has(self, query: str) -> bool:
        """Whether the set, as far as it has been opened, answers a question."""
        return self._opened is not None and query in self._opened.answers.row_of

    def _read(self) -> AnswerSet:
        if self.kind == "ranking":
            assert self.home is not None
            return read_ranking(self.path, self.name, self.label, self.home.facts.by_id)
        ranks: Mapping[str, tuple[int, ...]] | None = None
        if self.home is not None:
            ranked = RunDir.at(self.home.path).evaluation / self.path.name
            if ranked.is_file():
                ranks = {each.example_id: each.gold_ranks for each in read_rankings(ranked)}
        return read_results(self.path, self.name, self.label, ranks)


@dataclass
class OpenedSet:
    """A set of answers with what its run knows of its questions."""

    answers: AnswerSet
    home: Home | None

    @cached_property
    def probe_of(self) -> np.ndarray:
        """The probe that each question is, int64 [Q]; -1 for none."""
        numbers = self.home.facts.number_of if self.home is not None else {}
        return np.array([numbers.get(name, -1) for name in self.answers.ids], np.int64)

    def _of_probes(self, name: str) -> np.ndarray:
        values = np.full(len(self.answers), np.nan)
        if self.home is not None and self.home.facts.measured:
            having = self.probe_of >= 0
            values[having] = self.home.facts.ends[name][self.probe_of[having]]
        return values

    @cached_property
    def known(self) -> np.ndarray:
        """1 where the model answers the question right by itself at the last probed step, float [Q]; NaN unknown."""
        return self._of_probes("exact")

    @cached_property
    def prob(self) -> np.ndarray:
        """Probability of the answer at the last probed step, float [Q]; NaN unknown."""
        return self._of_probes("after")

    @cached_property
    def rank(self) -> np.ndarray:
        """Rank of the first gold passage, from 1, float [Q]; NaN where it is not known."""
        first = self.answers.first_gold
        return np.where(first >= 0, first + 1.0, np.nan)

    @cached_property
    def measures(self) -> list[Measure]:
        return measures_of(self.answers, self.known, self.prob)

    @cached_property
    def columns(self) -> Columns:
        """What a filter may ask."""
        texts = {
            "relation": self.answers.relations,
            "prompt": self.answers.prompts,
            "target": self.answers.targets,
            "id": pa.array(self.answers.ids, pa.string()),
        }
        correct = np.where(self.answers.first_gold == 0, 1.0, 0.0)
        if not np.isfinite(self.rank).any():
            correct[:] = np.nan
        return Columns(
            {name: pc.utf8_lower(values) for name, values in texts.items()},
            {"rank": self.rank, "score": self.answers.best_score.astype(np.float64), "prob": self.prob},
            {"correct": correct, "known": self.known},
            ("prompt", "target", "id"),
        )

    @cached_property
    def relation_names(self) -> list[str]:
        return [name for name in dict.fromkeys(self.answers.relations.to_pylist()) if name]

    @cached_property
    def documents(self) -> tuple[list[str], np.ndarray]:
        """Names of documents, and the document of each passage that the answers name, into them: int32 [passages]."""
        names: dict[str, int] = {}
        codes = [names.setdefault(document_of(name)[0], len(names)) for name in self.answers.postings.names]
        return list(names), np.array(codes, np.int32)

    @cached_property
    def sources(self) -> tuple[list[str], np.ndarray] | None:
        """The same of the corpus's sources; None where there is no corpus."""
        library = self.home.library if self.home is not None else None
        if library is None:
            return None
        numbers = library.numbers(self.answers.postings.names)
        known = np.array([numbers.get(name, -1) for name in self.answers.postings.names], np.int64)
        names = [*library.sources, "not in the corpus"]
        codes = np.full(len(known), len(names) - 1, np.int32)
        codes[known >= 0] = library.source_codes(known[known >= 0])
        return names, codes

    def gold(self, row: int) -> set[str]:
        """Ids of the passages known to state the answer."""
        probe = int(self.probe_of[row])
        if self.home is None or probe < 0:
            return set()
        return {str(name) for name in self.home.facts.probes[probe].get("gold") or ()}


@dataclass
class IndexEntry:
    """An index that can be asked; `trouble` says why not."""

    name: str
    path: Path
    home: Home
    about: dict[str, Any]
    trouble: str = ""


@dataclass
class Holdings:
    """Everything that was named, by the names of addresses."""

    title: str
    homes: list[Home] = field(default_factory=list)
    sets: dict[str, SetEntry] = field(default_factory=dict)
    indexes: dict[str, IndexEntry] = field(default_factory=dict)

    def set_of(self, name: str) -> SetEntry:
        """A set by its name; the first if it is empty.

        Raises:
            MissingError: there is none.
        """
        if not self.sets:
            raise MissingError("there are no results here", fix="run `headwater trace`, or name a file of results")
        if not name:
            return next(iter(self.sets.values()))
        if name not in self.sets:
            raise MissingError(f"there are no results named {name[:80]!r}", expected=", ".join(self.sets))
        return self.sets[name]

    def home_of(self, name: str) -> Home | None:
        """The home of a set or an index, or the only one there is."""
        entry = self.sets.get(name) or self.indexes.get(name)
        if entry is not None:
            return entry.home
        return self.homes[0] if self.homes else None

    def warm(self) -> None:
        """Reads ahead, so that no page has to wait; what is wrong with a file is said on its own page."""
        for entry in list(self.sets.values()):
            with suppress(UserError, OSError):
                entry.open()
        for entry in list(self.sets.values()):
            with suppress(UserError, OSError):
                _ = entry.open().documents, entry.open().sources

    @property
    def probed(self) -> list[Home]:
        """Homes whose facts were followed over training."""
        return [home for home in self.homes if home.facts.measured]


def find(paths: Sequence[str | Path]) -> Holdings:
    """Looks what lies at some paths: run directories, index directories, files of results.

    Raises:
        MissingError: nothing is there, or nothing that can be shown.
    """
    given = [Path(path) for path in paths]
    holdings = Holdings(", ".join(path.resolve().name for path in given))
    several = len(given) > 1
    for path in given:
        prefix = f"{path.resolve().name.removesuffix('.jsonl')}/" if several else ""
        if path.is_file():
            add_set(holdings, prefix[:-1] or path.stem, "results", path, home_above(holdings, path))
        elif (path / "index.json").is_file():
            add_index(holdings, prefix[:-1] or path.resolve().name, path)
        elif path.is_dir():
            add_run(holdings, prefix, path)
        else:
            raise MissingError(f"{path} is not there", fix="give a run, an index, or a file of results")
    if not holdings.sets and not holdings.indexes and not holdings.probed:
        raise MissingError(
            f"{holdings.title} holds nothing to explore",
            expected="a run with traces/, index/ or probes.parquet, an index, or a JSONL file of results",
            fix="`headwater demo` makes a run",
        )
    return holdings


def home_at(holdings: Holdings, path: Path) -> Home:
    for home in holdings.homes:
        if home.path.resolve() == path.resolve():
            return home
    home = Home(path, Facts(RunDir.at(path)))
    holdings.homes.append(home)
    return home


def home_above(holdings: Holdings, path: Path) -> Home | None:
    """The run that a file of results lies in, where it stands in its traces/."""
    above = path.resolve().parent
    if above.name == "traces" and (above.parent / "corpus").is_dir():
        return home_at(holdings, above.parent)
    return None


def add_run(holdings: Holdings, prefix: str, path: Path) -> None:
    home, run = home_at(holdings, path), RunDir.at(path)
    traces = {file.stem: file for file in sorted((path / "traces").glob("*.jsonl"))}
    ranked = {file.stem: file for file in sorted(run.evaluation.glob("*.jsonl"))}
    for name in ordered([*traces, *(name for name in ranked if name not in traces)]):
        if name in traces:
            add_set(holdings, prefix + name, "results", traces[name], home)
        else:
            add_set(holdings, prefix + name, "ranking", ranked[name], home)
    for name in ordered([file.parent.name for file in sorted((path / "index").glob("*/index.json"))]):
        add_index(holdings, prefix + name, run.index(name), home)


def add_set(holdings: Holdings, name: str, kind: str, path: Path, home: Home | None) -> None:
    label = LABELS.get(name.rpartition("/")[2], name)
    if "/" in name:
        label = f"{name.rpartition('/')[0]}: {label}"
    while name in holdings.sets:
        name, label = f"{name}'", f"{label}'"
    holdings.sets[name] = SetEntry(name, label, kind, path, home)


def add_index(holdings: Holdings, name: str, path: Path, home: Home | None = None) -> None:
    """Notes an index; one that cannot be asked stays in the list, with what is wrong with it."""
    about: dict[str, Any] = {}
    trouble = ""
    try:
        about = read_json(path / "index.json")
        if not isinstance(about, dict) or not isinstance(about.get("model"), dict):
            raise CorruptError(f"{path / 'index.json'} is not an index's", fix="make the index again")
        if not about.get("complete"):
            trouble = f"{path} is half written: run `headwater index` again to finish it"
    except UserError as error:
        about, trouble = {}, str(error)
    if home is None:
        runs = model_places(path, about).get("run", []) if about else []
        own = (path / "corpus").is_dir() or not runs
        home = home_at(
            holdings, path if own else next((run for run in runs if (run / "checkpoints").is_dir()), runs[0])
        )
    holdings.indexes[name] = IndexEntry(name, path, home, about, trouble)
