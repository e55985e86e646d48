"""Settings of the study of data selection, and where its files are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headwater.attribution.selection.settings import SelectSettings
from headwater.attribution.settings import IndexSettings
from headwater.configs import ConfigError, Problem, load_config, setting
from headwater.train.artifacts import RunDir
from headwater.train.corpus.settings import SourceSettings
from headwater.train.settings import PretrainSettings

ARMS = {"headwater": "Headwater's half", "bm25": "BM25's half", "random": "A random half"}
"""Ways to choose, with what they are called."""
WHOLE = "whole"
"""The model of the whole corpus, which the rows are of."""
SHUFFLED = "shuffled/"
"""What the ids of documents begin with whose words stand in random order."""


@dataclass(kw_only=True, slots=True)
class SelectionSettings:
    """Models of chosen shares of a corpus, each asked questions of the task that nobody chose with."""

    out: str = setting("runs/study/selection", "Where the runs and the report go.")
    preset: str = setting("study/selection-base", "The pretraining configuration; its sources are what is drawn from.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    seeds: list[int] = setting([0, 1, 2, 3, 4], "Of documents, questions, weights and order.", minimum=0)
    task: str = setting("/economy$", "A pattern in the ids of the documents that the task is made of.")
    held_out: int = setting(
        24, "Documents of the task that no model is trained on; half of them choose, half judge.", minimum=2
    )
    asked: int = setting(96, "Questions of each of these halves.", minimum=2)
    documents: int = setting(240, "Documents of the corpus.", minimum=2)
    shuffled: float = setting(
        0.5,
        "Share of these whose words are put into random order: they teach nothing.",
        minimum=0,
        below=1,
    )
    share: float = setting(0.5, "Share of the passages that is chosen.", above=0, below=1)
    index: list[str] = setting([], "key=value overrides of the index's settings.")
    select: list[str] = setting([], "key=value overrides of `headwater select`'s settings.")
    parallel: int = setting(2, "Parts that run at once, each on its share of the cores.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            yield Problem("seeds", self.seeds, "at least one, each once")
        try:
            re.compile(self.task)
        except re.error as error:
            yield Problem("task", self.task, f"a pattern of Python's re ({error})")
        for key, load in (("index", index_settings), ("select", select_settings)):
            try:
                load(self, Path())
            except ConfigError as error:
                yield from (Problem(f"{key}: {p.key}", p.value, p.expected, p.fix) for p in error.problems)


def index_settings(settings: SelectionSettings, seed: Path) -> IndexSettings:
    """How the whole corpus's model is indexed."""
    run = model_run(seed)
    return load_config(IndexSettings, None, [*settings.index, f"model.run={run.path}", f"out={run.index('headwater')}"])


def select_settings(settings: SelectionSettings, seed: Path) -> SelectSettings:
    """How its half is chosen."""
    given = [f"index={model_run(seed).index('headwater')}", f"queries={choosing_file(seed)}"]
    given += [f"share={settings.share}", f"out={seed / 'chosen' / 'headwater.jsonl'}"]
    return load_config(SelectSettings, None, [*settings.select, *given])


def drawn_from(settings: SelectionSettings) -> list[SourceSettings]:
    """The sources of the documents."""
    return load_config(PretrainSettings, settings.preset, settings.pretrain).corpus.sources


def training_overrides(settings: SelectionSettings, number: int, path: Path, further: list[str]) -> list[str]:
    """What a training of the study changes in the preset."""
    source = f"corpus.sources=[{{kind: jsonl, path: '{documents_file(path.parent)}'}}]"
    seeds = [f"seed={number}", f"corpus.seed={number}"]
    return [*settings.pretrain, source, "facts.people=0", *seeds, f"out={path}", *further]


def seed_path(out: Path, number: int) -> Path:
    return out / f"seed-{number}"


def model_run(seed: Path) -> RunDir:
    """The model of the whole corpus."""
    return RunDir(seed / WHOLE)


def documents_file(seed: Path) -> Path:
    return seed / "documents.jsonl"


def choosing_file(seed: Path) -> Path:
    """The questions that a half is chosen with."""
    return seed / "choosing.jsonl"


def judging_file(seed: Path) -> Path:
    """The questions that its model is asked."""
    return seed / "judging.jsonl"


def excluded_file(seed: Path, arm: str) -> Path:
    """Ids of the passages that were not chosen, one a line."""
    return seed / "chosen" / f"without-{arm}.txt"
