"""One part of the study of half-corpora, in a process of its own.

    python -m headwater.launch.studies.lds.process runs/study/lds/halves/003 [CORES]

The model of the whole corpus makes the corpus and the queries first; a half takes them over and leaves the other half's
passages out. Each ends with what its model says to every query.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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
    out = path.parent if task["factors"]["part"] == "model" else path.parent.parent
    settings = load_config(LdsSettings, out / "config.yaml")
    pretraining = load_config(PretrainSettings, task["preset"], task["overrides"])
    if task["factors"]["part"] == "model":
        write_queries(out, settings, pretraining)
    else:
        share_corpus(model_run(out).path, path)
        write_excluded(out, path, task["factors"]["number"], settings.seed)
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


def write_excluded(out: Path, path: Path, number: int, seed: int) -> None:
    """The passages that are not in a half, one id a line."""
    from headwater.train.stream.passages import open_passages

    passages = open_passages(model_run(out))
    inside_N = draw_half(len(passages), number, seed)
    names = [name for name, inside in zip(passages.ids(0, len(passages)), inside_N, strict=True) if not inside]
    write_bytes(path / "exclude.txt", "".join(f"{name}\n" for name in names).encode())


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(train_and_measure)))
