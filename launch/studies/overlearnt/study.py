"""Facts that a model has learnt too well: which attribution still finds the passages that taught them.

    headwater study overlearnt                             # the preset study/overlearnt, two CPU cores
    headwater study overlearnt precision=fp32 seeds=[0]

At the last checkpoint of a long training the gradients of learnt tokens have vanished. Five ways of tracing are held
against gold on every seed's model: its last checkpoint with the cross entropy and with log-odds, the sum over saved
checkpoints, the mean row captured in training, and that with log-odds. Then passages are left out: some facts that the
model knows are drawn, the best passages that a method names for them are taken out of the stream, and the model is
trained again, with the same seed, so that nothing but these visits differs.

    OUT/seed-0/model/                  the pretraining, its indexes, evaluation, and leave_out/ (facts, passages)
    OUT/seed-0/without-captured/ ...   a training without the passages of one list
    OUT/summary.json  OUT/table.md  OUT/report/index.html

Every part is an ordinary run directory; a study that was killed goes on with the parts that are not finished.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.configs import ConfigError, Problem
from headwater.launch.parts.part import name_of
from headwater.launch.parts.pool import make_parts
from headwater.launch.parts.settings import keep_whole_study
from headwater.launch.studies.overlearnt.parts import OverlearntPart
from headwater.launch.studies.overlearnt.settings import LABELS, OverlearntSettings, pretraining, saved_steps

if TYPE_CHECKING:
    from rich.table import Table


class Overlearnt:
    """One study."""

    def __init__(self, settings: OverlearntSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary.

        Raises:
            ConfigError, MismatchError: nothing is run.
            UserError: a part failed; the others are finished.
        """
        from headwater.launch.studies.overlearnt.page import write_report
        from headwater.launch.studies.overlearnt.summary import summarise

        models = [self._model(seed) for seed in self.settings.seeds]
        arms = itertools.product(self.settings.leave_out.arms, self.settings.seeds)
        retrained = [self._retraining(seed, arm) for arm, seed in arms]
        self._check_same()
        parts = [*models, *retrained]
        make_parts(parts, self.settings.parallel, self.say)
        summary = summarise(self.settings)
        write_report(self.settings, summary)
        return summary

    def path(self, seed: int, part: str) -> Path:
        return self.out / f"seed-{seed}" / part

    def _model(self, seed: int) -> OverlearntPart:
        path = self.path(seed, "model")
        overrides, plain = pretraining(self.settings, seed, path)
        steps = saved_steps(self.settings, plain.train.steps)
        index = self.settings.index
        overrides += [
            f"checkpoint.steps={steps}",
            f"callbacks.probes.every={steps[0]}",
            "callbacks.capture.enabled=true",
            "callbacks.capture.mode=mean",
            f"callbacks.capture.proj={self.settings.captured_dims or index.projection.dims}",
            f"callbacks.capture.correction={index.correction}",
            f"callbacks.capture.curvature={index.curvature.kind}",
            f"callbacks.capture.damping={index.curvature.damped}",
            f"callbacks.capture.codecs={index.codecs}",
        ]
        return self._part(path, {"part": "model", "seed": seed}, overrides)

    def _retraining(self, seed: int, arm: str) -> OverlearntPart:
        path, model = self.path(seed, f"without-{arm.replace('_', '-')}"), self.path(seed, "model")
        overrides, plain = pretraining(self.settings, seed, path)
        steps = saved_steps(self.settings, plain.train.steps)
        overrides += [
            f"train.exclude={model / 'leave_out' / f'{arm}.txt'}",
            f"checkpoint.every={steps[0]}",
            "checkpoint.keep=1",
            f"callbacks.probes.every={plain.train.steps}",
        ]
        factors = {"part": "retraining", "seed": seed, "arm": arm, "model": str(model)}
        return self._part(path, factors, overrides, after=(name_of(model),))

    def _part(
        self, path: Path, factors: dict[str, Any], overrides: list[str], after: tuple[str, ...] = ()
    ) -> OverlearntPart:
        part = OverlearntPart.planned(path, factors, self.settings.preset, overrides, after)
        if not part.settings.facts.people:
            raise ConfigError([Problem("facts.people", 0, "at least one: the study asks for their facts")], "the study")
        return part

    def _check_same(self) -> None:
        keep_whole_study(self.settings)


def run_overlearnt(settings: OverlearntSettings) -> dict[str, Any]:
    """Runs the study and prints its tables and claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Overlearnt(settings, say).run(), settings.out, tables)


def tables(summary: dict[str, Any], width: int) -> list[Table]:
    """The methods, and what leaving out their passages does."""
    from rich.table import Table

    from headwater.attribution.evaluation.table import console_table
    from headwater.launch.studies.page import as_interval

    table = Table("left out", "passages", "drop of the probability", "share of gold's", box=None, header_style="bold")
    for arm, row in summary["pooled"]["leave_out"].items():
        cells = [as_interval(row["drop"]), as_interval(row["share_of_gold"])]
        table.add_row(LABELS[arm], f"{row['passages']:,}", *cells)
    return [console_table(summary["pooled"], width, LABELS), table]
