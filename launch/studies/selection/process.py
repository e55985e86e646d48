"""One part of the study of data selection, in a process of its own.

    python -m headwater.launch.studies.selection.process runs/study/selection/seed-0/whole [CORES]

The whole corpus's model makes the corpus and the questions first, and chooses when it is trained; the others take its
corpus and leave out what was not chosen. Each ends with what its model says to every question that judges.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs import load_config
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, link, pretrain_whole, share_corpus
from headwater.launch.studies.lds.outputs import QUERIES
from headwater.launch.studies.selection.data import write_data
from headwater.launch.studies.selection.settings import (
    WHOLE,
    SelectionSettings,
    choosing_file,
    drawn_from,
    excluded_file,
    index_settings,
    judging_file,
    model_run,
    select_settings,
)
from headwater.train.artifacts import write_bytes
from headwater.train.settings import PretrainSettings


def train_and_ask(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    seed, factors = path.parent, task["factors"]
    settings = load_config(SelectionSettings, seed.parent / "config.yaml")
    if factors["arm"] == WHOLE:
        write_data(seed, factors["seed"], settings, drawn_from(settings))
    else:
        share_corpus(model_run(seed).path, path)
    link(judging_file(seed), path / QUERIES)
    status = pretrain_whole(path, load_config(PretrainSettings, task["preset"], task["overrides"]))
    if status == 0 and factors["arm"] == WHOLE:
        choose(seed, factors["seed"], settings)
    return status


def choose(seed: Path, number: int, settings: SelectionSettings) -> None:
    """Writes what each arm leaves out: all passages that it did not choose."""
    from headwater.train.stream.passages import open_passages

    passages = open_passages(model_run(seed))
    scores = {"bm25": bm25_scores(seed), "random": np.random.default_rng([number, 0xA3]).standard_normal(len(passages))}
    taken = {"headwater": choose_by_rows(seed, settings)}
    from headwater.attribution.selection.scores import chosen

    taken |= {arm: chosen(each, share=settings.share).tolist() for arm, each in scores.items()}
    every = passages.ids(0, len(passages))
    for arm, places in taken.items():
        kept = set(places)
        left_out = "".join(f"{name}\n" for place, name in enumerate(every) if place not in kept)
        write_bytes(excluded_file(seed, arm), left_out.encode())


def choose_by_rows(seed: Path, settings: SelectionSettings) -> list[int]:
    """Numbers of the passages that `headwater select` takes with the index of the whole corpus's model."""
    from headwater.attribution.index.build import build_index
    from headwater.attribution.selection.run import run_select
    from headwater.train.stream.passages import open_passages

    build_index(index_settings(settings, seed))
    selection = select_settings(settings, seed)
    if not Path(selection.out).exists():
        run_select(selection)
    passages = open_passages(model_run(seed))
    names = [json.loads(line)["id"] for line in Path(selection.out).read_text().splitlines()]
    places = [passages.find(name) for name in names]
    return [place for place in places if place is not None]


def bm25_scores(seed: Path) -> np.ndarray:
    """Each passage's mean score for the questions that choose: float32 [passages]."""
    from headwater.attribution.evaluation.baselines.bm25 import BM25
    from headwater.attribution.tracing.queries import read_queries
    from headwater.train.stream.passages import open_passages

    return BM25().scores(read_queries(choosing_file(seed)), open_passages(model_run(seed))).mean(axis=0)


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(train_and_ask)))
