"""The probes of a run: what was asked over training, and how its probability went."""

from __future__ import annotations

import json
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headwater.attribution.explorer.sets import lines_of
from headwater.configs.errors import CorruptError
from headwater.train.artifacts import RunDir

CURVES_KEPT = 256


class Facts:
    """The probes of a run and their curves; a curve is read when it is drawn."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._curves: OrderedDict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()

    @cached_property
    def probes(self) -> list[dict[str, Any]]:
        """The lines of facts/probes.jsonl, in the order of probes.parquet; empty where the run has none."""
        path = self.run.facts / "probes.jsonl"
        if not path.is_file():
            return []
        probes = []
        for number, _, line in lines_of(path):
            try:
                probe = json.loads(line)
                probe["example_id"] = str(probe.get("example_id", number - 1))
                probes.append(probe | {"prompt": str(probe["prompt"]), "target": str(probe["target"])})
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise CorruptError(f"{path}, line {number} is not a probe", got=repr(error)[:200]) from None
        return probes

    @cached_property
    def number_of(self) -> dict[str, int]:
        return {probe["example_id"]: number for number, probe in enumerate(self.probes)}

    @cached_property
    def by_id(self) -> dict[str, dict[str, Any]]:
        return {probe["example_id"]: probe for probe in self.probes}

    @cached_property
    def _by_words(self) -> dict[tuple[str, str], int]:
        return {(probe["prompt"], probe["target"]): number for number, probe in enumerate(self.probes)}

    def probe_of(self, example_id: str, prompt: str = "", target: str = "") -> int | None:
        """The probe that a question is, by its id or its words."""
        number = self.number_of.get(example_id)
        return number if number is not None else self._by_words.get((prompt.strip(), target.strip()))

    @cached_property
    def measured(self) -> bool:
        return self.run.probes.is_file() and bool(self.probes)

    def _read(self, columns: list[str], filters: Any = None) -> pa.Table:
        try:
            return pq.read_table(self.run.probes, columns=columns, filters=filters)
        except (pa.ArrowException, OSError, KeyError) as error:
            fix = "restore it, or run `headwater pretrain` again"
            raise CorruptError(f"{self.run.probes} cannot be read", got=str(error)[:200], fix=fix) from None

    @cached_property
    def steps(self) -> np.ndarray:
        """The probed steps, ascending, int64 [S]."""
        if not self.measured:
            return np.empty(0, np.int64)
        return np.sort(pc.unique(self._read(["step"])["step"]).to_numpy()).astype(np.int64)

    def curve(self, probe: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(steps int64, probability, log-probability per token) of a probe; of a step measured twice the later."""
        if probe not in self._curves:
            table = self._read(["step", "prob", "logprob"], [("probe", "==", probe)])
            columns = [table[name].to_numpy() for name in ("step", "prob", "logprob")]
            last = {int(step): place for place, step in enumerate(columns[0])}
            order = [last[step] for step in sorted(last)]
            self._curves[probe] = (
                columns[0][order].astype(np.int64),
                columns[1][order].astype(np.float64),
                columns[2][order].astype(np.float64),
            )
            if len(self._curves) > CURVES_KEPT:
                self._curves.popitem(last=False)
        return self._curves[probe]

    @cached_property
    def ends(self) -> dict[str, np.ndarray]:
        """Of every probe: `before`, `after` (probabilities at the first and last probed step), `exact` (1 where the
        model's greedy answer was right at the last); float64 [P], NaN where it was not measured."""
        count = len(self.probes)
        found = {name: np.full(count, np.nan) for name in ("before", "after", "exact")}
        if not self.measured or not len(self.steps):
            return found
        for step, names in ((self.steps[0], ("before",)), (self.steps[-1], ("after", "exact"))):
            table = self._read(["probe", "prob", "exact"], [("step", "==", int(step))])
            probes = table["probe"].to_numpy()
            inside = probes < count
            for name in names:
                values = table["exact" if name == "exact" else "prob"].to_numpy(zero_copy_only=False)
                found[name][probes[inside]] = values[inside].astype(np.float64)
        return found

    @cached_property
    def means(self) -> dict[str, np.ndarray]:
        """Mean probability at each probed step for each relation, float64 [S]."""
        if not self.measured:
            return {}
        table = self._read(["step", "probe", "prob"])
        names = list(dict.fromkeys(str(probe.get("relation", "fact")) for probe in self.probes))
        kind = np.array([names.index(str(probe.get("relation", "fact"))) for probe in self.probes])
        probes = table["probe"].to_numpy()
        inside = probes < len(kind)
        at = np.searchsorted(self.steps, table["step"].to_numpy())[inside]
        cell = at * len(names) + kind[probes[inside]]
        size = len(self.steps) * len(names)
        total = np.bincount(cell, table["prob"].to_numpy()[inside].astype(np.float64), size)
        count = np.bincount(cell, minlength=size)
        mean_SR = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(len(self.steps), len(names))
        return {name: mean_SR[:, number] for number, name in enumerate(names)}

    @property
    def path(self) -> Path:
        return self.run.path
