"""What a selection can be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headwater.attribution.settings import task_weight_problems, task_weight_setting
from headwater.configs import Problem, setting

ENDINGS = (".jsonl", ".parquet")


@dataclass(kw_only=True, slots=True)
class SelectSettings:
    """The passages of a corpus that serve a task best: how they are scored, and how many are taken."""

    index: str = setting("", "The index directory.")
    also: list[str] = setting([], "Further indexes of the same passages: scores are added.")
    weights: list[float] = setting([], "Weights of `index` and the further ones; empty: all 1.")
    queries: str = setting("", "A JSONL file of queries: the task.")
    out: str = setting("", "Where the chosen go, best first: a new .jsonl or .parquet file.")
    score: str = setting(
        "mean", "A passage's score for the task, over the queries: their mean, or the highest.", choices=("mean", "max")
    )
    unit: str = setting("passage", "What is chosen.", choices=("passage", "document"))
    document_score: str = setting(
        "max", "A document's score, over its passages: the highest, or their mean.", choices=("max", "mean")
    )
    top: int = setting(0, "Take this many.", minimum=0)
    share: float = setting(0.0, "Instead: take this share of all.", minimum=0, maximum=1)
    per_source: bool = setting(False, "Take `top` or `share` of every source, instead of all sources together.")
    curvature: str = setting("task", "Curvature of the scores.", choices=("task", "train", "none"))
    task_weight: float | str = task_weight_setting()
    normalize: bool = setting(True, "Unit norm of query and passage (cosine).")
    codec: str | None = setting(None, "The form that is scanned; the finest if not given.")

    def problems(self) -> Iterator[Problem]:
        for key, what in (("index", "an index directory"), ("queries", "a JSONL file of queries")):
            if not getattr(self, key):
                yield Problem(key, "", what)
        if not self.out.endswith(ENDINGS):
            yield Problem("out", self.out, f"a file that ends with {' or '.join(ENDINGS)}")
        if bool(self.top) == bool(self.share):
            yield Problem("top", self.top, "either top or share", "give one of the two")
        if self.weights and len(self.weights) != 1 + len(self.also):
            yield Problem("weights", self.weights, f"one per index ({1 + len(self.also)})")
        yield from task_weight_problems(self.task_weight)
