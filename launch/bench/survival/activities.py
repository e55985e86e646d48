"""What is broken off: a training, the build of a corpus, the build of an index, a study, a sweep; each in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headwater.launch.bench.survival.compare import file_differences, index_differences, leftovers, run_differences
from headwater.launch.bench.survival.processes import Work
from headwater.train.artifacts import RunDir

LAYOUT_TOLERANCE = 1e-5
"""Relative, of losses in another layout."""


@dataclass(frozen=True)
class Layout:
    """How many processes share the work, and how."""

    ranks: int = 1
    overrides: tuple[str, ...] = ()
    same: bool = True
    """Whether its numbers are the first layout's to the bit."""

    def __str__(self) -> str:
        return " ".join([f"{self.ranks} process{'es' if self.ranks > 1 else ''}", *self.overrides])


@dataclass(frozen=True)
class Activity:
    """A piece of work.

    Attributes:
        needs: the activity whose unbroken result it begins from; empty: none.
        begin: (place, what it needs): fills a new directory with what the work begins from.
        work: (place, what it needs, layout): the command.
        differences: (place, unbroken place, whether to the bit): a line for each difference.
        layouts: of the restarts; the first is the unbroken one's.
    """

    name: str
    needs: str
    begin: Callable[[Path, Path], None]
    work: Callable[[Path, Path, Layout], Work]
    differences: Callable[[Path, Path, bool], list[str]]
    layouts: tuple[Layout, ...] = (Layout(),)


TINY = "pretrain/tiny"

CORPUS = ("train.steps=40", "train.global_batch=4", "corpus.passages=200", "corpus.tokenizer.vocab_size=1024")
"""What a corpus and its schedule depend on."""

SETTINGS = (
    *CORPUS,
    "train.micro_batch=2",
    "checkpoint.every=4",
    "checkpoint.asynchronous=true",
    "callbacks.probes.every=8",
    "callbacks.metrics.tensorboard=false",
    "callbacks.capture.enabled=true",
    "callbacks.capture.proj=4",
)


INDEX = ("projection.dims=8", "codecs=[int8,sign]", "shard_rows=64", "batch_tokens=512")


def begin_training(place: Path, corpus: Path) -> None:
    shutil.copytree(corpus / "run", place / "run")


def training(place: Path, corpus: Path, layout: Layout) -> Work:
    given = (TINY, f"out={place / 'run'}", *SETTINGS, *layout.overrides)
    return Work("headwater.train", given, layout.ranks)


def training_differences(place: Path, unbroken: Path, exact: bool) -> list[str]:
    run, expected = RunDir.at(place / "run"), RunDir.at(unbroken / "run")
    return run_differences(run, expected, 0.0 if exact else LAYOUT_TOLERANCE)


def begin_nothing(place: Path, needed: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)


def corpus(place: Path, nothing: Path, layout: Layout) -> Work:
    return Work("headwater.launch", ("corpus", TINY, f"out={place / 'run'}", *CORPUS, *layout.overrides))


def corpus_differences(place: Path, unbroken: Path, exact: bool) -> list[str]:
    return file_differences(place / "run", unbroken / "run")


def index(place: Path, trained: Path, layout: Layout) -> Work:
    given = ("index/run", f"model.run={trained / 'run'}", f"out={place / 'index'}", *INDEX, *layout.overrides)
    return Work("headwater.attribution.index", given, layout.ranks)


def whole_index_differences(place: Path, unbroken: Path, exact: bool) -> list[str]:
    return index_differences(place / "index", unbroken / "index", exact=exact) + leftovers(place)


STUDY = (
    "seeds=[0]",
    "documents=30",
    "held_out=4",
    "asked=6",
    "index=[projection.dims=4]",
    "parallel=1",
    "pretrain=[train.steps=24, checkpoint.every=4, checkpoint.asynchronous=true, model.hidden=64, model.ffn_hidden=128,"
    " model.layers=2, corpus.tokenizer.vocab_size=512]",
)
"""Of `study/selection`: four trainings of seconds, an index, and a choice of passages."""


def study(place: Path, nothing: Path, layout: Layout) -> Work:
    given = ("study", "selection", "study/selection", f"out={place / 'study'}", *STUDY, *layout.overrides)
    return Work("headwater.launch", given)


def study_differences(place: Path, unbroken: Path, exact: bool) -> list[str]:
    found = file_differences(place / "study", unbroken / "study", wanted=lambda path: path.name == "summary.json")
    for each in sorted((unbroken / "study").glob("seed-*/*/metrics.jsonl")):
        run = place / "study" / each.parent.relative_to(unbroken / "study")
        found += [f"{run.name}: {line}" for line in run_differences(RunDir.at(run), RunDir.at(each.parent))]
    return found


SWEEP = (
    "kind=pretrain",
    f"preset={TINY}",
    "seeds=[0]",
    "grid={optimizer.lr: [0.001, 0.004]}",
    "overrides=[train.steps=16, checkpoint.every=4, checkpoint.asynchronous=true, callbacks.probes.every=8,"
    " callbacks.metrics.tensorboard=false, callbacks.capture.enabled=true, callbacks.capture.proj=4]",
)


def sweep(place: Path, nothing: Path, layout: Layout) -> Work:
    return Work("headwater.launch", ("ablate", "run", f"out={place / 'sweep'}", *SWEEP, *layout.overrides))


def sweep_differences(place: Path, unbroken: Path, exact: bool) -> list[str]:
    found = file_differences(place / "sweep", unbroken / "sweep", wanted=lambda path: path.name == "table.json")
    for each in sorted((unbroken / "sweep" / "cells").iterdir()):
        run = RunDir.at(place / "sweep" / "cells" / each.name)
        found += [f"{each.name}: {line}" for line in run_differences(run, RunDir.at(each))]
    return found


PARALLEL = (Layout(), Layout(1, ("parallel=2",)))
"""Of studies and sweeps: their parts one after the other, or two at once."""

ACTIVITIES = {
    each.name: each
    for each in (
        Activity(
            "training",
            "corpus",
            begin_training,
            training,
            training_differences,
            (
                Layout(),
                Layout(2, same=False),
                Layout(2, ("parallel.tensor=2",), same=False),
                Layout(2, ("parallel.tensor=2", "parallel.sequence=true"), same=False),
                Layout(2, ("parallel.pipeline=2",), same=False),
                Layout(2, ("zero.stage=3",), same=False),
                Layout(1, ("zero.stage=0",), same=False),
            ),
        ),
        Activity(
            "corpus",
            "",
            begin_nothing,
            corpus,
            corpus_differences,
            (Layout(), Layout(1, ("corpus.workers=2",))),
        ),
        Activity(
            "index",
            "training",
            begin_nothing,
            index,
            whole_index_differences,
            (Layout(), Layout(2), Layout(2, ("parallel.tensor=2",), same=False)),
        ),
        Activity("study", "", begin_nothing, study, study_differences, PARALLEL),
        Activity("sweep", "", begin_nothing, sweep, sweep_differences, PARALLEL),
    )
}
