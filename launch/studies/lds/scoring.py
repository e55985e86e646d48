"""A method's scores of every passage for every query, in a process of its own.

    python -m headwater.launch.studies.lds.scoring runs/study/lds/methods/NAME [CORES]

The rows of the whole corpus's model are indexed, unless another method has the same index, and the queries are asked
kind by kind: those of one kind are the task whose curvature is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.configs import load_config
from headwater.launch.parts.process import run_part
from headwater.launch.studies.lds.queries import KINDS
from headwater.launch.studies.lds.settings import LdsSettings, MethodSettings, model_run, queries_file
from headwater.train.artifacts import atomic_path

if TYPE_CHECKING:
    from headwater.attribution.tracing.queries import Query
    from headwater.train.stream.passages import PassageSet


def score_passages(path: Path, task: dict[str, Any]) -> int:
    """Makes OUT/methods/NAME/scores.npy; returns the exit status."""
    from headwater.attribution.index.build import build_index
    from headwater.attribution.settings import IndexSettings

    out = path.parent.parent
    settings = load_config(LdsSettings, out / "config.yaml")
    method = next(each for each in settings.methods if each.name == path.name)
    run = model_run(out)
    if not method.captured:
        own = run.index(task["indexes"][0])
        build_index(load_config(IndexSettings, None, [*method.index, f"model.run={run.path}", f"out={own}"]))
    scores_QN = method_scores(method, [run.index(name) for name in task["indexes"]], queries_file(out))
    save_array(path / "scores.npy", scores_QN)
    return 0


def method_scores(method: MethodSettings, indexes: Sequence[Path], queries: Path) -> np.ndarray:
    """Every passage's score for every query of a file, float32 [queries, passages].

    Args:
        indexes: the method's own, and the further ones whose scores are added.
    """
    from headwater.attribution.evaluation.baselines.trak import Trak
    from headwater.attribution.search.scorer import Scoring
    from headwater.attribution.tracing.attributor import Attributor
    from headwater.attribution.tracing.queries import read_queries

    asked = read_queries(queries)
    if method.curvature == "trak":
        with Attributor.open(indexes[0]) as attributor:
            return Trak(attributor).scores(asked, attributor.passages)
    scoring = Scoring(curvature=method.curvature, task_weight=method.task_weight, normalize=method.normalize)
    with Attributor.open(indexes[0], also=indexes[1:], weights=method.weights) as attributor:
        scores_QN = np.empty((len(asked), len(attributor.passages)), dtype=np.float32)
        for kind in KINDS:
            places = [place for place, query in enumerate(asked) if query.record["kind"] == kind]
            if places:
                scores_QN[places] = attributor.scores([asked[place] for place in places], scoring)
    return scores_QN


def baseline_scores(queries: Sequence[Query], passages: PassageSet, seed: int) -> dict[str, np.ndarray]:
    """1 for the passages that state the answer, words and runs of words in common, and chance: [queries, passages]
    each."""
    from headwater.attribution.evaluation.baselines.bm25 import BM25
    from headwater.attribution.evaluation.baselines.ngram import NGram
    from headwater.attribution.evaluation.ranking import numbers_of

    gold_QN = np.zeros((len(queries), len(passages)))
    for place, query in enumerate(queries):
        gold_QN[place, numbers_of(query.gold, passages)] = 1
    random_QN = np.random.default_rng([seed, 0xBA5E]).standard_normal((len(queries), len(passages)))
    words = {method.name: method.scores(queries, passages) for method in (BM25(), NGram())}
    return {"gold": gold_QN, **words, "random": random_QN}


def save_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as part, open(part, "wb") as file:
        np.save(file, array)


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], score_passages))
