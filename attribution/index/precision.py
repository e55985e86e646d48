"""`model.precision=auto`: the number format in which this machine collects faster, found by trying.

Which one it is depends on the processor: one with bf16 products may be nearly twice as fast in bf16, another slower.
It is noted beside the index before any row is made, so that a build that goes on elsewhere takes the same.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from headwater.attribution.index.writer import require_index_directory
from headwater.attribution.models.base import Example
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.settings import IndexSettings
from headwater.train.artifacts import read_json, write_json
from headwater.train.numerics import use_onednn
from headwater.train.parallel import World, from_main

FILE = "precision.json"
FORMATS = ("fp32", "bf16")
LENGTH, EXAMPLES, ROUNDS = 64, 8, 3
"""Tokens of an example, examples of a batch, and batches of which the fastest counts, after one to warm up."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The format that an index is made in.

    Attributes:
        tokens_per_s: of each format that was tried; empty where the index had been begun.
    """

    precision: str
    tokens_per_s: dict[str, float]

    def note(self, out: Path) -> None:
        """Writes it beside the index, unless it is there."""
        if self.tokens_per_s:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / FILE, {"precision": self.precision, "tokens_per_s": self.tokens_per_s})


def quicker_precision(settings: IndexSettings, out: Path, world: World) -> Choice:
    """The faster format, the same on every rank: that of before if the index has been begun. Nothing is written.

    Args:
        settings: of the build; all ranks of a replica collect together.
        out: the index directory.

    Raises:
        UserError: the directory holds something else.
    """
    begun = from_main(world, lambda: chosen_before(out))
    if begun:
        return Choice(begun, {})
    speeds = {each: tokens_per_s(settings, each, world) for each in FORMATS}

    def choose() -> Choice:
        best = max(FORMATS, key=speeds.__getitem__)
        told = ", ".join(f"{each} {speed:,.0f}" for each, speed in speeds.items())
        print(f"precision=auto: {best} (tokens/s: {told})", file=sys.stderr)
        return Choice(best, speeds)

    return from_main(world, choose)


def chosen_before(out: Path) -> str:
    """What a build in this directory has been begun with; empty if none has."""
    require_index_directory(out)
    if (out / "index.json").exists():
        return str(read_json(out / "index.json")["model"]["precision"])
    return str(read_json(out / FILE)["precision"]) if (out / FILE).exists() else ""


def tokens_per_s(settings: IndexSettings, precision: str, world: World) -> float:
    """How fast rows are collected of made-up passages, on this rank; how this process multiplies stays as it was."""
    before = torch.get_float32_matmul_precision()
    if precision == "fp32":
        use_onednn()
    try:
        model = open_model(replace(settings.model, precision=precision), world)
        correction = "none" if settings.model.moments == "fit" else settings.correction
        collector = GradientCollector(model, settings.projection, correction, settings.loss)
        length = min(LENGTH, model.context or LENGTH)
        tokens = np.random.default_rng(0).integers(0, model.vocabulary or 256, (EXAMPLES, length))
        examples, seconds = [Example(each) for each in tokens], []
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            collector.rows(examples)
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_float32_matmul_precision(before)
    return float(tokens.size / min(seconds[1:]))
