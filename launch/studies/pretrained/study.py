"""A real language model is taught new facts, and each of its answers is traced through all passages.

    make smollm2                                          # fetches one
    headwater study pretrained model=$HOME/.cache/headwater/SmolLM2-135M-Instruct

The model goes on training on passages of the Factbook with invented people among them, until it answers questions
about them in wordings that it has never seen, and further. At several steps it is traced by every method; then it is
trained again without the passages that some of them name. What it knew before is asked all the while.

    OUT/start/                        the weights, as a checkpoint
    OUT/seed-0/model/                 the training, its checkpoints and indexes, and leave_out/ (facts, passages)
    OUT/seed-0/traced-80/ ...         rankings of every method after a step
    OUT/seed-0/without-gold/ ...      a training without the passages of one list
    OUT/summary.json  OUT/table.md  OUT/report/index.html

A study that was killed goes on with the parts that are not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.configs import ConfigError, Problem
from headwater.configs.errors import MissingError
from headwater.launch.parts.part import name_of
from headwater.launch.parts.pool import make_parts
from headwater.launch.parts.settings import keep_whole_study
from headwater.launch.studies.pretrained.parts import PretrainedPart, StartPart, TracedPart
from headwater.launch.studies.pretrained.settings import (
    CALLBACK,
    PretrainedSettings,
    left_out_step,
    model_run,
    pretraining,
    traced_path,
    without_run,
)

if TYPE_CHECKING:
    from rich.table import Table


class Pretrained:
    """One study."""

    def __init__(self, settings: PretrainedSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary.

        Raises:
            ConfigError, MissingError, MismatchError: nothing is run.
            UserError: a part failed; the others are finished.
        """
        from headwater.launch.studies.pretrained.page import write_report
        from headwater.launch.studies.pretrained.summary import summarise

        start = StartPart(name="start", path=self.out / "start", model=self.settings.model)
        if not start.is_done() and not Path(self.settings.model).exists():
            fix = "`make smollm2` fetches one"
            raise MissingError(f"there is no model {self.settings.model}", expected="a directory or a file", fix=fix)
        keep_whole_study(self.settings)
        make_parts([start], self.settings.parallel, self.say)
        make_parts(self.parts(), self.settings.parallel, self.say)
        summary = summarise(self.settings)
        write_report(self.settings, summary)
        return summary

    def parts(self) -> list[StartPart | PretrainedPart | TracedPart]:
        """Of each seed in turn: the model, its tracing step by step, the trainings without what is named."""
        found: list[StartPart | PretrainedPart | TracedPart] = []
        for seed in self.settings.seeds:
            model = self._model(seed)
            traced = [self._traced(seed, step, model) for step in self.settings.traced]
            lists = traced[self.settings.traced.index(left_out_step(self.settings))]
            found += [model, *traced, *(self._without(seed, arm, lists) for arm in self.settings.leave_out.arms)]
        return found

    def _model(self, seed: int) -> PretrainedPart:
        index = self.settings.index
        further = [
            f"checkpoint.steps={self.settings.traced}",
            f"callbacks.probes.steps={self.settings.traced}",
            f"callbacks.extra=[{CALLBACK}]",
            "callbacks.capture.enabled=true",
            f"callbacks.capture.proj={index.projection.dims}",
            f"callbacks.capture.correction={index.correction}",
            f"callbacks.capture.curvature={index.curvature.kind}",
            f"callbacks.capture.damping={index.curvature.damped}",
            f"callbacks.capture.codecs={index.codecs}",
        ]
        return self._part(seed, model_run(self.settings, seed).path, {"part": "model"}, further)

    def _traced(self, seed: int, step: int, model: PretrainedPart) -> TracedPart:
        path = traced_path(self.settings, seed, step)
        settings = self.settings
        return TracedPart(name=name_of(path), path=path, after=(model.name,), settings=settings, seed=seed, step=step)

    def _without(self, seed: int, arm: str, lists: TracedPart) -> PretrainedPart:
        path, model = without_run(self.settings, seed, arm).path, model_run(self.settings, seed).path
        stop = left_out_step(self.settings)
        further = [f"train.exclude={model / 'leave_out' / f'{arm}.txt'}", f"train.hard_stop={stop}"]
        further += [f"callbacks.probes.steps=[{stop}]", "callbacks.probes.every=0", "callbacks.validation.every=0"]
        return self._part(seed, path, {"part": "retraining", "arm": arm}, further, after=(lists.name,))

    def _part(
        self, seed: int, path: Path, factors: dict[str, Any], further: list[str], after: tuple[str, ...] = ()
    ) -> PretrainedPart:
        overrides, _ = pretraining(self.settings, seed, path)
        factors = {**factors, "seed": seed}
        part = PretrainedPart.planned(path, factors, self.settings.preset, [*overrides, *further], after)
        if not part.settings.facts.people:
            raise ConfigError([Problem("facts.people", 0, "at least one: the study asks for their facts")], "the study")
        return part


def run_pretrained(settings: PretrainedSettings) -> dict[str, Any]:
    """Runs the study and prints its tables and claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Pretrained(settings, say).run(), settings.out, tables)


def tables(summary: dict[str, Any], width: int) -> list[Table]:
    """The methods at each step, and what leaving out their passages does."""
    from rich.table import Table

    from headwater.launch.studies.pretrained.page import LEFT_OUT, POINTS, left_out_lines, point_lines

    shown = []
    for heads, lines in ((POINTS, point_lines(summary)), (LEFT_OUT, left_out_lines(summary))):
        table = Table(*heads, box=None, header_style="bold")
        for cells in lines:
            table.add_row(*cells)
        shown.append(table)
    return shown
