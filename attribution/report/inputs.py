"""Everything the report reads from a run directory, checked once: what must be there, and what may be absent.

A missing required file is one clear MissingError that names the command which makes it. An absent optional one is noted
in `RunData.absent`, and the page says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.ranking import Ranking, read_rankings
from headwater.configs.errors import CorruptError, MissingError
from headwater.train import tables
from headwater.train.artifacts import RunDir, read_json
from headwater.train.callbacks.metrics import read_metrics


@dataclass(frozen=True)
class ProbeCurves:
    """Probe measurements over training: S probed steps by P probes (NaN where one was not measured)."""

    steps_S: np.ndarray
    prob_SP: np.ndarray
    logprob_SP: np.ndarray
    exact_SP: np.ndarray


@dataclass(frozen=True, slots=True)
class LedgerCount:
    """How many injected segments the ledger records at each step, and its last step."""

    injected: Counter[int]
    last_step: int


@dataclass(frozen=True)
class RunData:
    """One run as the report sees it."""

    run: RunDir
    corpora: dict[str, dict[str, Any]]
    probes: list[dict[str, Any]]
    facts: list[dict[str, Any]]
    curves: ProbeCurves
    metrics: list[dict[str, Any]]
    index: dict[str, Any]
    table: dict[str, Any]
    trace: list[dict[str, Any]]
    validation: list[dict[str, Any]] = field(default_factory=list)
    rankings: dict[str, Ranking] = field(default_factory=dict)
    schedule: dict[str, list[int]] | None = None
    ledger: LedgerCount | None = None
    timings: dict[str, float] = field(default_factory=dict)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    config: str | None = None
    absent: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps trained."""
        return max((int(line["step"]) for line in self.metrics), default=0)

    @property
    def passages(self) -> int:
        """Passages of the whole corpus, injected ones included."""
        return sum(int(each["passages"]) for each in self.corpora.values())


def read_run(path: str | Path, *, index: str, trace: str) -> RunData:
    """Reads a run directory.

    Args:
        index: name of the index under RUN/index.
        trace: name of the trace under RUN/traces.

    Raises:
        MissingError: if a required part is not there; it names the command that makes it.
        CorruptError: if a part cannot be read.
    """
    run = RunDir.at(path)
    if not run.path.is_dir():
        raise MissingError(f"{run.path} is not a run directory", fix="run `headwater pretrain` first")
    absent: list[str] = []
    probes = read_lines(run.facts / "probes.jsonl", "headwater corpus")
    return RunData(
        run=run,
        corpora=read_manifests(run),
        probes=probes,
        facts=read_lines(run.facts / "facts.jsonl", "headwater corpus"),
        curves=read_curves(run.probes, len(probes)),
        metrics=read_lines(run.metrics, "headwater pretrain"),
        validation=read_metrics(run.validation),
        index=read_index(run, index),
        table=read_json(run.evaluation / "table.json", made_by="headwater evaluate"),
        trace=read_lines(run.trace(trace), "headwater trace"),
        rankings=read_ranks(run, trace, absent),
        schedule=read_schedule(run, absent),
        ledger=count_injections(run, absent),
        timings=optional_json(run.path / "timings.json", {}, "wall times (timings.json)", absent),
        provenance=optional_json(run.provenance, [], "versions and commands (provenance.json)", absent),
        config=optional_text(run.config, "the resolved configuration (config.yaml)", absent),
        absent=absent,
    )


def require(path: Path, made_by: str) -> Path:
    if not path.exists():
        raise MissingError(f"{path} is missing", fix=f"run `{made_by}` first")
    return path


def read_lines(path: Path, made_by: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    rows = []
    for number, line in enumerate(require(path, made_by).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            fix = f"run `{made_by}` again"
            raise CorruptError(f"line {number} of {path} is not a JSON object", got=str(error), fix=fix) from None
    return rows


def read_table(path: Path, columns: Iterable[str]) -> dict[str, np.ndarray]:
    """Columns of a parquet file as arrays."""
    names = list(columns)
    table = tables.read_table(path, names, fix="restore it, or make it again")
    return {name: table.column(name).to_numpy() for name in names}


def read_manifests(run: RunDir) -> dict[str, dict[str, Any]]:
    """The manifest of each corpus directory of the run, by its name (`base`, `injected`)."""
    manifests = {path.parent.name: read_json(path) for path in sorted(run.corpus.glob("*/manifest.json"))}
    if not manifests:
        raise MissingError(f"{run.corpus} holds no corpus", fix="run `headwater corpus` first")
    return manifests


def read_index(run: RunDir, name: str) -> dict[str, Any]:
    """index.json of a finished index."""
    path = run.index(name) / "index.json"
    index = read_json(path, made_by="headwater index")
    if not index.get("complete"):
        raise MissingError(f"the index in {path.parent} is not complete", fix="run `headwater index` again; it goes on")
    return index


def read_curves(path: Path, probes: int) -> ProbeCurves:
    """Pivots probes.parquet; where a step was probed twice (a resumed run), the later measurement holds."""
    columns = read_table(require(path, "headwater pretrain"), ("step", "probe", "prob", "logprob", "exact"))
    if len(columns["step"]) == 0:
        raise MissingError(
            f"{path} holds no measurement", fix="set `probes.every` above 0 and run `headwater pretrain`"
        )
    if int(columns["probe"].max()) >= probes:
        raise CorruptError(
            f"{path} measures probes that probes.jsonl does not have",
            got=f"probe {int(columns['probe'].max())}",
            expected=f"below {probes}",
            fix="run `headwater pretrain` again with these facts",
        )
    steps_S, place = np.unique(columns["step"], return_inverse=True)
    pivoted = {}
    for name in ("prob", "logprob", "exact"):
        values_SP = np.full((len(steps_S), probes), np.nan)
        values_SP[place, columns["probe"]] = columns[name].astype(np.float64)
        pivoted[name] = values_SP
    return ProbeCurves(steps_S.astype(np.int64), pivoted["prob"], pivoted["logprob"], pivoted["exact"])


def read_ranks(run: RunDir, method: str, absent: list[str]) -> dict[str, Ranking]:
    path = run.evaluation / f"{method}.jsonl"
    if not path.exists():
        absent.append(f"ranks over the whole corpus (evaluation/{path.name})")
        return {}
    return {each.example_id: each for each in read_rankings(path)}


def read_schedule(run: RunDir, absent: list[str]) -> dict[str, list[int]] | None:
    """Injected passage id -> the steps at which the compiled schedule puts it into the stream.

    The schedule counts steps from 0, as the stream does; the ledger, the metrics and the probes count from 1 (step n is
    the n-th update, and a probe at step n comes after it). The page speaks the second way.
    """
    path = run.facts / "schedule.parquet"
    if not path.exists():
        absent.append("the injection schedule (facts/schedule.parquet)")
        return None
    columns = read_table(path, ("step", "passage_id"))
    steps: dict[str, list[int]] = {}
    for step, passage in zip(columns["step"].tolist(), columns["passage_id"].tolist(), strict=True):
        steps.setdefault(passage, []).append(int(step) + 1)
    return {passage: sorted(each) for passage, each in steps.items()}


def count_injections(run: RunDir, absent: list[str]) -> LedgerCount | None:
    files = sorted(run.ledger.glob("*.parquet"))
    if not files:
        absent.append("the ledger (ledger/)")
        return None
    parts = [read_table(file, ("step", "injected")) for file in files]
    last = max((int(part["step"].max()) for part in parts if len(part["step"])), default=-1)
    injected = Counter(int(step) for part in parts for step in part["step"][part["injected"].astype(bool)])
    return LedgerCount(injected, last)


def optional_json(path: Path, default: Any, what: str, absent: list[str]) -> Any:
    if not path.exists():
        absent.append(what)
        return default
    return read_json(path)


def optional_text(path: Path, what: str, absent: list[str]) -> str | None:
    if not path.exists():
        absent.append(what)
        return None
    return path.read_text(encoding="utf-8", errors="replace")
