"""What the paper of TrackStar says of influence and attribution, on models of several sizes and amounts of tokens.

    headwater study tracing                                # the preset study/tracing, two CPU cores
    headwater study tracing study/tracing-long recipe.run=runs/study/pretrained/seed-0/model

Models of several sizes are trained on one corpus with planted people, some of whom they are never shown. Each is traced
after several amounts of tokens by TrackStar's recipe, by Headwater's, by BM25 and at random: whether the passages that
state a fact come first, whether a step on what comes first moves the model (tail-patch), what leaving it out does, and
what kind of passage it is. The recipe is taken apart on a real model's run, where one is given.

    OUT/seed-0/corpus/                     what the models of a seed have in common
    OUT/seed-0/small/ ...                  a training with its checkpoints and indexes
    OUT/seed-0/small-traced-300/ ...       rankings, tail-patch and kinds after a step
    OUT/seed-0/small-without-gold/ ...     a training without the passages of one list
    OUT/recipe/                            the rows of the recipe
    OUT/summary.json  OUT/table.md  OUT/report/index.html

A study that was killed goes on with the parts that are not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.launch.parts.part import Part, name_of
from headwater.launch.parts.pool import make_parts
from headwater.launch.parts.settings import NOT_KEPT, keep_study
from headwater.launch.studies.sizes import SizeSettings
from headwater.launch.studies.tracing.parts import CorpusPart, ModelPart, TracedPart
from headwater.launch.studies.tracing.settings import (
    SHARED_ARMS,
    UNSEEN,
    TracingSettings,
    check_trainings,
    corpus_run,
    model_run,
    recipe_path,
    traced_path,
    trained_at,
    training_overrides,
    without_run,
)

if TYPE_CHECKING:
    from rich.table import Table


class Tracing:
    """One study."""

    def __init__(self, settings: TracingSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary.

        Raises:
            ConfigError, MissingError, MismatchError: nothing is run.
            UserError: a part failed; the others are finished.
        """
        from headwater.launch.studies.tracing.page import write_report
        from headwater.launch.studies.tracing.recipe import require_run
        from headwater.launch.studies.tracing.summary import summarise

        check_trainings(self.settings)
        recipe = self.settings.recipe
        if recipe.run:
            require_run(recipe.run)
        # A real model's run may be given to a finished study.
        given = {name: each for name, each in asdict(self.settings).items() if name not in (*NOT_KEPT, "recipe")}
        keep_study(self.out, self.settings, given)
        if not recipe.run:
            self.say("recipe: not run, since no run of a real model was given (recipe.run=DIR)")
        make_parts(self.parts(), self.settings.parallel, self.say)
        summary = summarise(self.settings)
        write_report(self.settings, summary)
        return summary

    def parts(self) -> list[Part]:
        """The recipe, which is one long part; of each seed in turn its corpus, and of each size the model, its
        tracings, the trainings without what is named. The largest models come first, since they take longest."""
        found: list[Part] = self._recipe()
        for seed in self.settings.seeds:
            corpus = self._corpus(seed)
            found.append(corpus)
            for size in reversed(self.settings.sizes):
                model = self._model(seed, size, corpus)
                traced = {step: self._traced(seed, size, step, model) for step in trained_at(self.settings)}
                found += [model, *traced.values(), *self._without(seed, size, model, traced)]
        return found

    def _recipe(self) -> list[Part]:
        if not self.settings.recipe.run:
            return []
        path, factors = recipe_path(self.settings), {"part": "recipe"}
        return [TracedPart(name="recipe", path=path, settings=self.settings, factors=factors, kept=("recipe",))]

    def _corpus(self, seed: int) -> CorpusPart:
        path = corpus_run(self.settings, seed).path
        overrides = training_overrides(self.settings, seed, self.settings.sizes[0], path, [])
        factors = {"part": "corpus", "seed": seed}
        return CorpusPart.planned(path, factors, self.settings.preset, overrides)

    def _model(self, seed: int, size: SizeSettings, corpus: CorpusPart) -> ModelPart:
        steps = trained_at(self.settings)
        further = [f"checkpoint.steps={steps}", f"train.exclude={corpus.path / UNSEEN}"]
        factors = {"part": "model", "facts": self.settings.leave_out.facts}
        path = model_run(self.settings, seed, size.name).path
        return self._training(seed, size, path, factors, further, (corpus.name,))

    def _traced(self, seed: int, size: SizeSettings, step: int, model: ModelPart) -> TracedPart:
        path = traced_path(self.settings, seed, size.name, step)
        return TracedPart(
            name=name_of(path),
            path=path,
            after=(model.name,),
            settings=self.settings,
            factors={"part": "traced", "seed": seed, "size": size.name, "step": step},
            kept=("index", "trackstar", "evaluate", "leave_out"),
        )

    def _without(
        self, seed: int, size: SizeSettings, model: ModelPart, traced: dict[int, TracedPart]
    ) -> list[ModelPart]:
        """The trainings without gold and random passages go to the end and are read at every amount of tokens; one
        without what a method names after a step ends with that step."""
        leave_out, last = self.settings.leave_out, self.settings.amounts[-1]
        if not leave_out.facts:
            return []
        arms = [(arm, last, (model.name,)) for arm in SHARED_ARMS]
        for method in leave_out.methods:
            arms += [(f"{method}-{step}", step, (traced[step].name,)) for step in self.settings.amounts]
        found = []
        for arm, stop, after in arms:
            path = without_run(self.settings, seed, size.name, arm).path
            further = [f"train.exclude={path / 'exclude.txt'}", f"train.hard_stop={stop}"]
            found.append(self._training(seed, size, path, {"part": "retraining", "arm": arm}, further, after))
        return found

    def _training(
        self,
        seed: int,
        size: SizeSettings,
        path: Path,
        factors: dict[str, Any],
        further: list[str],
        after: tuple[str, ...],
    ) -> ModelPart:
        asked = [f"callbacks.probes.steps={self.settings.amounts}", "callbacks.probes.every=0"]
        saved = [f"checkpoint.every={self.settings.amounts[0]}", "checkpoint.keep=1"]
        overrides = training_overrides(self.settings, seed, size, path, [*asked, *saved, *further])
        factors = {**factors, "seed": seed, "size": size.name}
        return ModelPart.planned(path, factors, self.settings.preset, overrides, after)


def run_tracing(settings: TracingSettings) -> dict[str, Any]:
    """Runs the study and prints its table and claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Tracing(settings, say).run(), settings.out, tables)


def tables(summary: dict[str, Any], width: int) -> list[Table]:
    """Every method at every point, of which a narrow console shows the middle columns alone."""
    from rich.table import Table

    from headwater.launch.studies.tracing.page import POINTS, point_lines

    wanted = [0, 2, 4, 5, 7, 8] if width < 150 else list(range(len(POINTS)))
    table = Table(*(POINTS[place] for place in wanted), box=None, header_style="bold")
    for cells in point_lines(summary["measures"]["growth"]):
        table.add_row(*(cells[place] for place in wanted))
    return [table]
