"""The paper's recipe taken apart on a real pretrained model's run: one index, or one way of searching it, a row.

PATH/run/          links to the run, and the indexes          PATH/ROW.jsonl     the rankings of each row
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headwater.attribution.settings import (
    CurvatureSettings,
    EvaluateSettings,
    IndexSettings,
    ProjectionSettings,
    TracedModelSettings,
)
from headwater.configs.errors import MissingError
from headwater.launch.studies.tracing.parts import DONE
from headwater.launch.studies.tracing.settings import RecipeSettings

FULL, OTHER, RANDOM = "full", "projected-otherwise", "random"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        name: of its files.
        label: what is other in it.
        index: the index that it searches; rows that only search differently share one.
        changes: what is other in that index.
        curvature, normalize, weight: how it is searched.
        claimed: the paper has it below the full recipe.
    """

    name: str
    label: str
    index: str = FULL
    changes: dict[str, Any] = field(default_factory=dict)
    curvature: str = "task"
    normalize: bool = True
    weight: float = 0.0
    claimed: bool = True


def rows(settings: RecipeSettings) -> Iterator[Row]:
    """The rows, the full recipe first."""
    full = ProjectionSettings(dims=settings.dims)
    weight = settings.task_weight
    plain = CurvatureSettings(kind="none")
    yield Row(FULL, "the full recipe", weight=weight, claimed=False)
    yield Row("no-correction", "no optimizer correction", "uncorrected", {"correction": "none"}, weight=weight)
    yield Row("corpus-curvature", "the corpus's curvature alone", curvature="train", weight=weight)
    yield Row("no-curvature", "no curvature", "flat", {"curvature": plain}, curvature="none", weight=weight)
    yield Row("no-unit-norm", "no unit norm", normalize=False, weight=weight)
    fewer = {"projection": replace(full, dims=settings.fewer)}
    label = f"{settings.fewer} x {settings.fewer} dimensions instead of {settings.dims} x {settings.dims}"
    yield Row("fewer-dimensions", label, "narrow", fewer, weight=weight)
    for other in settings.weights:
        yield Row(f"weight-{other:g}", f"lambda {other:g} instead of {weight:g}", weight=other, claimed=False)
    again = {"projection": replace(full, seed=1)}
    yield Row(OTHER, "another random projection", "again", again, weight=weight, claimed=False)


def index_settings(settings: RecipeSettings, run: Path, row: Row) -> IndexSettings:
    """The index of a row, under the directory that links to the run."""
    recipe = IndexSettings(
        model=TracedModelSettings(run=str(run), step=settings.step or None),
        name=row.index,
        loss="cross_entropy",
        correction="adafactor",
        projection=ProjectionSettings(dims=settings.dims),
        curvature=CurvatureSettings(kind="full"),
        codecs=["int8"],
        batch_tokens=settings.batch_tokens,
    )
    return replace(recipe, **row.changes)


def require_run(path: str) -> None:
    """Looks whether a directory holds what the rows need.

    Raises:
        MissingError: naming what is not there.
    """
    needed = ("config.yaml", "checkpoints", "facts/probes.jsonl", "corpus")
    lacking = [name for name in needed if not (Path(path) / name).exists()]
    if lacking:
        raise MissingError(
            f"recipe.run = {path} is no run with planted facts",
            got=f"no {', '.join(lacking)} in it",
            expected="the directory of a model of `headwater study pretrained`, such as OUT/seed-0/model",
            fix="correct recipe.run, or leave it out: that part is then not run",
        )


def trace_rows(path: Path, settings: RecipeSettings) -> None:
    """Ranks all passages for every question of the run by each row, and at random; done.json at the end."""
    from headwater.attribution.evaluation.baselines.random_order import RandomRanking
    from headwater.attribution.evaluation.evaluate import GradientMethod, gradient_rankings
    from headwater.attribution.evaluation.ranking import write_rankings
    from headwater.attribution.index.build import build_index
    from headwater.attribution.tracing.queries import read_queries
    from headwater.launch.parts.training import share_run
    from headwater.train import parallel
    from headwater.train.artifacts import RunDir, write_json
    from headwater.train.stream.passages import open_passages

    require_run(settings.run)
    run = RunDir(path / "run")
    share_run(Path(settings.run), run.path)
    made = list(rows(settings))
    for row in {row.index: row for row in reversed(made)}.values():
        build_index(index_settings(settings, run.path, row))
    questions = read_queries(run.facts / "probes.jsonl")
    world = parallel.start()
    try:
        for row in made:
            evaluate = EvaluateSettings(run=str(run.path), task_weight=row.weight)
            method = GradientMethod(row.index, row.curvature, normalize=row.normalize)
            write_rankings(path / f"{row.name}.jsonl", gradient_rankings(run, method, questions, evaluate, world))
        passages = open_passages(run)
        write_rankings(path / f"{RANDOM}.jsonl", RandomRanking().rank(questions, passages))
    finally:
        parallel.stop()
    subjects = [str(each.record.get("subject", each.example_id)) for each in questions]
    write_json(path / DONE, {"passages": len(passages), "questions": len(questions), "subjects": subjects})
