"""When did it matter? What dropping some exposures does, and whether captured rows foretell it.

    headwater study exposures                              # the preset study/exposures, two CPU cores
    headwater study exposures out=DIR together=1           # a training for every fact and window

A model is trained once on everything, with the gradient row of every visit captured. Then it is trained again without
the exposures of some facts in some windows of steps, and nothing else: every other visit is made at the same step, in
the same sequence, which the ledgers show. The difference in the question's log-probability at the end is held against
what was foretold from the first training alone.

    OUT/seed-0/model/                  sees everything
    OUT/seed-0/cells.json              which fact's exposures, in which window, each training drops
    OUT/seed-0/foretold.json           what each predictor says of it
    OUT/seed-0/dropped-000/ ...        a training without them
    OUT/summary.json  OUT/table.md  OUT/report/index.html

Every part is an ordinary run directory; a study that was killed goes on with the parts that are not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwater.configs import ConfigError, Problem, load_config
from headwater.launch.parts.pool import make_parts
from headwater.launch.parts.settings import keep_whole_study
from headwater.launch.studies.exposures.cells import exclude_file, training_names
from headwater.launch.studies.exposures.parts import ExposuresPart
from headwater.launch.studies.exposures.settings import (
    ExposuresSettings,
    dropped_run,
    model_run,
    seed_path,
    training_overrides,
)
from headwater.launch.studies.lds.outputs import CALLBACK
from headwater.train.settings import PretrainSettings


class Exposures:
    """One study."""

    def __init__(self, settings: ExposuresSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary.

        Raises:
            ConfigError, MismatchError: nothing is run.
            UserError: a part failed; the others are finished.
        """
        from headwater.launch.studies.exposures.page import write_report
        from headwater.launch.studies.exposures.summary import summarise

        parts = self.parts()
        keep_whole_study(self.settings)
        make_parts(parts, self.settings.parallel, self.say)
        summary = summarise(self.settings)
        write_report(self.settings, summary)
        return summary

    def parts(self) -> list[ExposuresPart]:
        """Of each seed in turn: the training that sees everything, then those that drop some of it."""
        found: list[ExposuresPart] = []
        for seed in self.settings.seeds:
            model = self._model(seed)
            people = model.settings.facts.people
            names = training_names(self.settings, people)
            found += [model, *(self._dropped(seed, name, model) for name in names)]
        return found

    def _model(self, seed: int) -> ExposuresPart:
        plain = load_config(PretrainSettings, self.settings.preset, self.settings.pretrain)
        steps, count = plain.train.steps, self.settings.checkpoints
        if not plain.facts.people:
            raise ConfigError([Problem("facts.people", 0, "at least one: the study asks for their facts")], "the study")
        further = [
            f"checkpoint.steps={sorted({max(1, steps * n // count) for n in range(1, count + 1)})}",
            "callbacks.capture.enabled=true",
            "callbacks.capture.mode=visits",
            f"callbacks.capture.proj={self.settings.proj}",
        ]
        return self._part(seed, "model", model_run(seed_path(self.settings, seed)).path, further)

    def _dropped(self, seed: int, name: str, model: ExposuresPart) -> ExposuresPart:
        home = seed_path(self.settings, seed)
        further = [f"train.exclude={exclude_file(home, name)}"]
        return self._part(seed, name, dropped_run(home, name).path, further, after=(model.name,))

    def _part(self, seed: int, name: str, path: Path, further: list[str], after: tuple[str, ...] = ()) -> ExposuresPart:
        overrides = training_overrides(self.settings, seed, path, [f"callbacks.extra=[{CALLBACK}]", *further])
        return ExposuresPart.planned(path, {"name": name, "seed": seed}, self.settings.preset, overrides, after)


def run_exposures(settings: ExposuresSettings) -> dict[str, Any]:
    """Runs the study and prints its table and claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show
    from headwater.launch.studies.exposures.page import tables

    return run_and_show(lambda say: Exposures(settings, say).run(), settings.out, tables)
