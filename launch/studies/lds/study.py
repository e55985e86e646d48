"""Which scores foretell what leaving passages out does: the linear datamodeling score, from scratch.

    headwater study lds                                    # the preset study/lds, two CPU cores
    headwater study lds out=DIR seed=1 models=40
    headwater study lds out=DIR scores=FILE.npy            # adds a line for somebody else's scores

A model is trained on a whole corpus, then one on each of many halves of it, in the same order and from the same
weights, and each is asked every query. A method scores the passages for each query by the whole corpus's model; its
sums over a half are held against what the half's model said, query by query. Some halves are trained again from other
weights: how far one training foretells another is the ceiling.

    OUT/model/                  the whole corpus's model
    OUT/halves/000/ ...         a half's; again/000/ ... the same from other weights
    OUT/left/gold/000/ ...      one that lacks a few passages only: a query's golds, its best by a method, random ones
    OUT/queries.jsonl  OUT/summary.json  OUT/report/index.html
    OUT/outsider/               what anybody needs to be measured on the same trainings

Every part is an ordinary run directory; a study that was killed goes on with the parts that are not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater.configs import ConfigError, Problem, load_config
from headwater.configs.errors import MissingError
from headwater.launch.parts.part import name_of
from headwater.launch.parts.pool import finish_parts
from headwater.launch.parts.settings import keep_study
from headwater.launch.studies.lds.outputs import CALLBACK
from headwater.launch.studies.lds.outsider import keep_scores, write_outsider
from headwater.launch.studies.lds.parts import MethodPart, ModelPart
from headwater.launch.studies.lds.settings import (
    BEST,
    LdsSettings,
    half_path,
    index_names,
    left_path,
    left_sets,
    model_run,
    scores_file,
    training_overrides,
)

GROWING = ("out", "parallel", "models", "again", "methods", "left_out", "scores", "name")
"""Settings that a study may be gone on with others of."""
OTHER_WEIGHTS = 1000
"""Added to the seed for the weights of the trainings again."""


class Lds:
    """One study."""

    def __init__(self, settings: LdsSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary.

        Raises:
            ConfigError, MismatchError: nothing is run.
            UserError: a part failed; the others are finished.
        """
        from headwater.launch.studies.lds.page import write_report
        from headwater.launch.studies.lds.summary import summarise

        trainings = self.trainings()
        methods = self.methods(trainings[0])
        left = self.left_out(trainings[0], methods)
        self._check_same()
        for part in [*trainings, *left]:
            if not part.is_done():
                part.prepare()
        for each in methods:
            each.prepare()
        finish_parts([*trainings, *methods, *left], self.settings.parallel, self.say)
        write_outsider(self.out, self.settings)
        summary = summarise(self.out, self.settings)
        write_report(self.out, self.settings, summary)
        return summary

    def trainings(self) -> list[ModelPart]:
        """The whole corpus's model, the halves', and those trained again."""
        path = model_run(self.out).path
        model = self._part(path, {"part": "model"}, self.settings.traced)
        halves = [self._half(number, model) for number in range(self.settings.models)]
        return [model, *halves, *(self._half(number, model, again=True) for number in range(self.settings.again))]

    def methods(self, model: ModelPart) -> list[MethodPart]:
        """The scores of each method; who shares an index waits for whoever makes it."""
        indexes = index_names(self.settings.methods)
        found: list[MethodPart] = []
        for method in self.settings.methods:
            used = [indexes[name] for name in (method.name, *method.also)]
            paths = {name: scores_file(self.out, name).parent for name in [*used, *method.also]}
            after = [name_of(path) for name, path in paths.items() if name not in (method.name, "captured")]
            path = scores_file(self.out, method.name).parent
            part = MethodPart(name=name_of(path), path=path, after=(model.name, *after), method=method, indexes=used)
            found.append(part)
        return found

    def left_out(self, model: ModelPart, methods: list[MethodPart]) -> list[ModelPart]:
        """The trainings without small sets; a method's sets wait for its scores."""
        scored = {part.method.name: part.name for part in methods}
        if scored:
            scored[BEST] = next(iter(scored.values()))
        found = []
        for name in left_sets(self.settings):
            after = (model.name, *([scored[name]] if name in scored else []))
            for slot in range(self.settings.left_out.queries):
                path = left_path(self.out, name, self.settings.left_out.top, slot)
                further = [f"train.exclude={path / 'exclude.txt'}"]
                found.append(self._part(path, {"part": "left", "set": name, "slot": slot}, further, after))
        return found

    def _half(self, number: int, model: ModelPart, again: bool = False) -> ModelPart:
        path = half_path(self.out, number, again)
        further = [f"train.exclude={path / 'exclude.txt'}"]
        if again:
            further.append(f"model.seed={self.settings.seed + OTHER_WEIGHTS}")
        return self._part(path, {"part": "again" if again else "half", "number": number}, further, (model.name,))

    def _part(self, path: Path, factors: dict[str, Any], further: list[str], after: tuple[str, ...] = ()) -> ModelPart:
        overrides = training_overrides(self.settings, path, [f"callbacks.extra=[{CALLBACK}]", *further])
        part = ModelPart.planned(path, factors, self.settings.preset, overrides, after)
        if not part.settings.facts.people:
            raise ConfigError([Problem("facts.people", 0, "at least one: the study asks for their facts")], "the study")
        return part

    def _check_same(self) -> None:
        given = {name: value for name, value in asdict(self.settings).items() if name not in GROWING}
        keep_study(self.out, self.settings, given)


def add_outsider(settings: LdsSettings) -> dict[str, Any]:
    """Holds somebody else's scores against the trainings of a finished study, for good; returns the summary.

    Raises:
        UserError: there is no finished study, or these are no scores of its queries and passages.
    """
    from headwater.launch.studies.lds.page import write_report
    from headwater.launch.studies.lds.summary import summarise

    out = Path(settings.out)
    if not (out / "summary.json").exists():
        raise MissingError(f"{out} holds no finished study", fix=f"run `headwater study lds out={out}` first")
    kept = load_config(LdsSettings, out / "config.yaml")
    keep_scores(out, Path(settings.scores), settings.name, taken=[method.name for method in kept.methods])
    summary = summarise(out, kept)
    write_report(out, kept, summary)
    return summary


def run_lds(settings: LdsSettings) -> dict[str, Any]:
    """Runs the study, or adds somebody else's scores to it, and prints its tables; returns the summary."""
    from headwater.launch.studies.console import run_and_show
    from headwater.launch.studies.lds.page import tables

    if settings.scores:
        return run_and_show(lambda say: add_outsider(settings), settings.out, tables)
    return run_and_show(lambda say: Lds(settings, say).run(), settings.out, tables)
