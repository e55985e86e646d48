"""One part of the study of half-corpora, in a process of its own.

    python -m headwater.launch.studies.lds.process runs/study/lds/halves/003 [CORES]

The model of the whole corpus makes the corpus and the queries first; a half takes them over and leaves the other half's
passages out. Each ends with what its model says to every query.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs import load_config
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, link, pretrain_whole, share_corpus
from headwater.launch.studies.lds.halves import draw_half
from headwater.launch.studies.lds.outputs import QUERIES
from headwater.launch.studies.lds.settings import LdsSettings, model_run, queries_file
from headwater.train.artifacts import json_line, write_bytes
from headwater.train.settings import PretrainSettings


def train_and_measure(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    factors = task["factors"]
    out = path.parents[{"model": 0, "left": 2}.get(factors["part"], 1)]
    settings = load_config(LdsSettings, out / "config.yaml")
    pretraining = load_config(PretrainSettings, task["preset"], task["overrides"])
    if factors["part"] == "model":
        write_queries(out, settings, pretraining)
    else:
        share_corpus(model_run(out).path, path)
        write_excluded(out, path, factors, settings)
    link(queries_file(out), path / QUERIES)
    return pretrain_whole(path, pretraining)


def write_queries(out: Path, settings: LdsSettings, pretraining: PretrainSettings) -> None:
    """Makes the corpus and, of it, OUT/queries.jsonl, unless they are there."""
    from headwater.launch.studies.lds.queries import make_queries
    from headwater.train.corpus.build import build_corpus

    path = queries_file(out)
    if not path.exists():
        build_corpus(pretraining)
        records = make_queries(model_run(out), pretraining, settings.queries, settings.seed)
        write_bytes(path, "".join(json_line(record) for record in records).encode())


def write_excluded(out: Path, path: Path, factors: dict[str, Any], settings: LdsSettings) -> None:
    """The passages that a training lacks, one id a line: those that are not in its half, or those of its set."""
    from headwater.attribution.tracing.queries import read_queries
    from headwater.launch.studies.lds.leaving import set_of
    from headwater.train.stream.passages import open_passages

    passages = open_passages(model_run(out))
    if factors["part"] == "left":
        queries = read_queries(queries_file(out))
        lacking = set_of(factors["set"], factors["slot"], queries, passages, out, settings)
    else:
        lacking = np.flatnonzero(~draw_half(len(passages), factors["number"], settings.seed))
    write_bytes(path / "exclude.txt", "".join(f"{passages.id_of(int(n))}\n" for n in lacking).encode())


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(train_and_measure)))
