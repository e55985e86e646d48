"""One part of the study of half-corpora, in a process of its own.

    python -m headwater.launch.studies.lds.process runs/study/lds/halves/003 [CORES]

The model of the whole corpus makes the corpus and the queries first; a half takes them over and leaves the other half's
passages out. Each ends with what its model says to every query.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from headwater.configs import load_config
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import link, pretrain_whole
from headwater.launch.studies.lds.halves import draw_half
from headwater.launch.studies.lds.outputs import QUERIES
from headwater.launch.studies.lds.settings import LdsSettings, model_run, queries_file
from headwater.train.artifacts import json_line, read_json, write_bytes, write_json
from headwater.train.settings import PretrainSettings

SHARED = ("tokenizer.json", "corpus", "facts")
"""What a half takes from the whole corpus's model, as links."""


def train_and_measure(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    began = time.perf_counter()
    out = path.parent if task["factors"]["part"] == "model" else path.parent.parent
    settings = load_config(LdsSettings, out / "config.yaml")
    pretraining = load_config(PretrainSettings, task["preset"], task["overrides"])
    if task["factors"]["part"] == "model":
        write_queries(out, settings, pretraining)
    else:
        for name in SHARED:
            link(model_run(out).path / name, path / name)
        write_excluded(out, path, task["factors"]["number"], settings.seed)
    link(queries_file(out), path / QUERIES)
    status = pretrain_whole(path, pretraining)
    before = read_json(path / "seconds.json") if (path / "seconds.json").exists() else 0
    write_json(path / "seconds.json", round(before + time.perf_counter() - began, 1))
    return status


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
    sys.exit(run_part(sys.argv[1:], train_and_measure))
