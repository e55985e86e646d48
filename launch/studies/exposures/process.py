"""One part of the study of exposures, in a process of its own.

    python -m headwater.launch.studies.exposures.process runs/study/exposures/seed-0/dropped-003 [CORES]

The training that sees everything makes the corpus first, and when it is trained draws what the others drop, and
foretells it. Each of these takes its corpus, and when it is trained holds its ledger against that of the first: what is
dropped may differ, and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from headwater.configs import load_config
from headwater.launch.parts.pair import compare_ledgers
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, link, pretrain_whole, share_corpus
from headwater.launch.studies.exposures.cells import exclude_file, queries_of, read_cells, write_cells
from headwater.launch.studies.exposures.settings import ExposuresSettings, model_run, predictions_file
from headwater.launch.studies.lds.outputs import QUERIES
from headwater.train.artifacts import RunDir, write_json
from headwater.train.settings import PretrainSettings


def train_and_compare(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    from headwater.train.corpus.build import build_corpus

    home, factors = path.parent, task["factors"]
    pretraining = load_config(PretrainSettings, task["preset"], task["overrides"])
    model = model_run(home)
    if factors["name"] == "model":
        build_corpus(pretraining)
    else:
        share_corpus(model.path, path)
    link(model.facts / "probes.jsonl", path / QUERIES)
    status = pretrain_whole(path, pretraining)
    if status:
        return status
    if factors["name"] != "model":
        write_json(path / "difference.json", compare_ledgers(model, RunDir(path), exclude_file(home, factors["name"])))
        return 0
    from headwater.launch.studies.exposures.foretelling import foretell

    settings = load_config(ExposuresSettings, home.parent / "config.yaml")
    write_cells(settings, factors["seed"], queries_of(home), pretraining.train.steps)
    write_json(predictions_file(home), foretell(model, read_cells(home), factors["seed"]))
    return 0


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(train_and_compare)))
