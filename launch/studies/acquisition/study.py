"""How facts are acquired and forgotten in pretraining: the study of Chang et al. 2024 (arXiv 2406.11813).

    headwater study acquisition                                      # the preset study/acquisition, two CPU cores
    headwater study acquisition study/acquisition facts=fictional.json out=runs/study/published

A base model is pretrained (or taken: run=DIR) up to the steps in `stages`. From each of these checkpoints, weights and
moments, training goes on over the same stream, with fictional records put into it; probes of three depths are followed
densely, also long after the last injection. Every part is a run directory under `out`; a study that was killed goes on
where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headwater.configs import MissingError, UserError, load_config
from headwater.launch.parts.part import name_of
from headwater.launch.parts.pool import finish_parts
from headwater.launch.parts.settings import keep_study
from headwater.launch.studies.acquisition.parts import BasePart, ContinuedPart, StudyPart
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.train.artifacts import fingerprint
from headwater.train.settings import PretrainSettings


class Acquisition:
    """One study."""

    def __init__(self, settings: AcquisitionSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)
        stop = max(settings.stages) + settings.steps
        self.base_settings = base_settings(settings)
        if self.base_settings.train.steps < stop:
            raise UserError(
                "the base model's learning-rate schedule ends before the study does",
                got=f"train.steps = {self.base_settings.train.steps}",
                expected=f"at least the last stage and the study's steps, {stop}",
                fix=f"add train.steps={stop} to `pretrain`, or choose earlier stages",
            )

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary.

        Raises:
            MissingError, CorruptError: of the records; nothing is run.
            UserError: a part failed; the others are finished.
        """
        from headwater.launch.studies.acquisition.page import write_report
        from headwater.launch.studies.acquisition.summary import analyse

        parts = self.parts()
        self._check_records(parts[0])
        self._check_same()
        # A finished study needs its base models no longer.
        needed = {part.base for part in parts if not part.is_done()}
        bases = [base for base in self.bases() if base.path in needed]
        if self.settings.run:
            self._check_taken(bases)
            bases = []
        todo: list[StudyPart] = [*bases, *parts]
        for part in todo:
            if not part.is_done():
                part.prepare(self.out / "config.yaml")
        finish_parts(todo, self.settings.parallel, self.say)
        summary = analyse(self.settings, parts)
        write_report(self.settings, parts, summary)
        return summary

    def bases(self) -> list[BasePart]:
        """The base models: one a seed, or the run that is taken."""
        paths = {self._base(seed): seed for seed in self.settings.seeds}
        stages = tuple(self.settings.stages)
        return [BasePart(name=name_of(path), path=path, seed=seed, stages=stages) for path, seed in paths.items()]

    def parts(self) -> list[ContinuedPart]:
        """The runs of the study: per seed and stage the plain one, then the batch ablation at the first stage."""
        batch, first = self.base_settings.train.global_batch, self.settings.stages[0]
        for other in self.settings.batches:
            if other % batch or other == batch:
                raise UserError(
                    "batches", got=other, expected=f"multiples of the base model's train.global_batch {batch}"
                )
        made = []
        for seed in self.settings.seeds:
            made += [self._part(seed, f"stage-{stage}", stage, batch, 1) for stage in self.settings.stages]
            for other in self.settings.batches:
                for copies in (1, other // batch):
                    made.append(self._part(seed, f"stage-{first}_batch-{other}_copies-{copies}", first, other, copies))
        return made

    def _base(self, seed: int) -> Path:
        return Path(self.settings.run) if self.settings.run else self.out / f"seed-{seed}" / "base"

    def _part(self, seed: int, name: str, stage: int, batch: int, copies: int) -> ContinuedPart:
        path, base = self.out / f"seed-{seed}" / name, self._base(seed)
        after = () if self.settings.run else (name_of(base),)
        return ContinuedPart(
            name=name_of(path), path=path, after=after, seed=seed, base=base, stage=stage, batch=batch, copies=copies
        )

    def _check_records(self, part: ContinuedPart) -> None:
        """Looks at the file of records as the parts will, before anything is pretrained."""
        from headwater.launch.studies.acquisition.records import records_of

        if self.settings.facts:
            records_of(self.settings, part)

    def _check_taken(self, bases: list[BasePart]) -> None:
        for base in bases:
            if missing := base.missing():
                fix = "choose stages= among its checkpoints, or pretrain it with checkpoint.steps set"
                raise UserError(f"{base.path} has no checkpoint at every stage", got=f"no {missing[0]}", fix=fix)

    def _check_same(self) -> None:
        same = replace(self.settings, resamples=0, parallel=1)
        keep_study(
            self.out,
            self.settings,
            {"pretraining": asdict(self.base_settings), **asdict(same)},
            mark=fingerprint([asdict(self.base_settings), asdict(same)]),
            note={"settings": asdict(self.settings)},
        )


def base_settings(settings: AcquisitionSettings) -> PretrainSettings:
    """The configuration of the base model, that of the run that is taken or of the preset."""
    source = Path(settings.run) / "config.yaml" if settings.run else settings.preset
    if settings.run and not Path(source).is_file():
        raise MissingError(f"run={settings.run} is not a run directory", fix="correct the path, or leave run out")
    return load_config(PretrainSettings, source, settings.pretrain)


def run_acquisition(settings: AcquisitionSettings) -> dict[str, Any]:
    """Runs the study and prints what became of the paper's claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Acquisition(settings, say).run(), settings.out)
