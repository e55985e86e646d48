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
from headwater.launch.studies.acquisition.parts import (
    COPIES,
    REAL,
    REWORDED,
    SPACING,
    BasePart,
    ContinuedPart,
    StartPart,
    StudyPart,
)
from headwater.launch.studies.acquisition.settings import SIZE, AcquisitionSettings
from headwater.train.artifacts import fingerprint
from headwater.train.settings import PretrainSettings


class Acquisition:
    """One study."""

    def __init__(self, settings: AcquisitionSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)
        first, further = settings.stages[0], settings.stages[1:]
        arms = [settings.spacing.steps if self.spaced else 0, settings.popularity.steps if self.popular else 0]
        stop = max(
            first + max(settings.steps, *arms),
            max(further, default=0) + (settings.effect_steps or settings.steps),
        )
        self.base_settings = base_settings(settings)
        if self.base_settings.train.steps < stop:
            raise UserError(
                "the base model's learning-rate schedule ends before the study does",
                got=f"train.steps = {self.base_settings.train.steps}",
                expected=f"at least the last stage and the study's steps, {stop}",
                fix=f"add train.steps={stop} to `pretrain`, or choose earlier stages",
            )

    @property
    def spaced(self) -> bool:
        """Whether facts are met at several intervals; a file's records have too few wordings for it."""
        return bool(self.settings.spacing.intervals) and not self.settings.facts

    @property
    def popular(self) -> bool:
        """Whether facts of several popularities are shown; of invented records alone, as `spaced`."""
        return bool(self.settings.popularity.meetings) and not self.settings.facts

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary.

        Raises:
            MissingError, CorruptError: of the records or the real model; nothing is run.
            UserError: a part failed; the others are finished.
        """
        from headwater.launch.studies.acquisition.page import write_report
        from headwater.launch.studies.acquisition.summary import analyse

        parts = self.continued()
        self._check_records(parts[0])
        self._check_model(parts)
        self._check_same()
        # A finished study needs its base models no longer.
        needed = {part.base for part in parts if not part.is_done()}
        bases = [base for base in self.bases() if base.path in needed]
        if self.settings.run:
            self._check_taken([base for base in bases if base.size == SIZE])
            bases = [base for base in bases if base.size != SIZE]
        starts = [start for start in self.starts() if start.path in needed]
        # The real model's runs are the longest: at the end they would keep one core while the others idle.
        real = [part for part in parts if part.plan == REAL]
        todo: list[StudyPart] = [*starts, *real, *bases, *(part for part in parts if part.plan != REAL)]
        for part in todo:
            if not part.is_done():
                part.prepare(self.out / "config.yaml")
        finish_parts(todo, self.settings.parallel, self.say)
        summary = analyse(self.settings, parts)
        write_report(self.settings, summary)
        return summary

    def all_parts(self) -> list[BasePart | StartPart | ContinuedPart]:
        return [*self.bases(), *self.starts(), *self.continued()]

    def bases(self) -> list[BasePart]:
        """The base models: one a seed and size, or the run that is taken."""
        further = self._further_seeds()
        made = {}
        for seed in self.settings.used_seeds:
            stages = self.settings.stages if seed in further else self.settings.stages[:1]
            made[self._base(seed)] = BasePart(
                name=name_of(self._base(seed)), path=self._base(seed), seed=seed, stages=tuple(stages)
            )
        for seed in further:
            for size in self.settings.sizes:
                path = self._base(seed, size.name)
                stages = self.settings.stages[:1]
                made[path] = BasePart(name=name_of(path), path=path, seed=seed, stages=tuple(stages), size=size.name)
        return list(made.values())

    def starts(self) -> list[StartPart]:
        """The corpora of the real model."""
        paths = {seed: self.out / f"seed-{seed}" / "real-base" for seed in self.settings.real.seeds}
        made = [StartPart(name=name_of(path), path=path, seed=seed) for seed, path in paths.items()]
        return made if self.settings.model else []

    def continued(self) -> list[ContinuedPart]:
        """The runs of the study: per seed the plain one; of the first seeds further stages, batches, sizes, facts at
        several intervals and of several popularities; and the real model's."""
        batch, first = self.base_settings.train.global_batch, self.settings.stages[0]
        for other in self.settings.batches:
            if other % batch or other == batch:
                raise UserError(
                    "batches", got=other, expected=f"multiples of the base model's train.global_batch {batch}"
                )
        made = [self._part(seed, f"stage-{first}", first, batch) for seed in self.settings.used_seeds]
        for seed in self._further_seeds():
            made += [self._part(seed, f"stage-{stage}", stage, batch) for stage in self.settings.stages[1:]]
            made += [
                self._part(seed, f"stage-{first}_size-{size.name}", first, batch, size=size.name)
                for size in self.settings.sizes
            ]
            plans = [SPACING] * self.spaced + [COPIES, REWORDED] * self.popular
            made += [self._part(seed, f"stage-{first}_{plan}", first, batch, plan=plan) for plan in plans]
            for other in self.settings.batches:
                for copies in (1, other // batch):
                    name = f"stage-{first}_batch-{other}_copies-{copies}"
                    made.append(self._part(seed, name, first, other, copies=copies))
        for start in self.starts():
            size = self._real_batch()
            path = start.path.with_name("real")
            made.append(
                ContinuedPart(
                    name=name_of(path),
                    path=path,
                    after=(start.name,),
                    seed=start.seed,
                    base=start.path,
                    stage=0,
                    batch=size,
                    plan=REAL,
                )
            )
        return made

    def _further_seeds(self) -> list[int]:
        return self.settings.used_seeds[: self.settings.part_seeds or None]

    def _real_batch(self) -> int:
        return load_config(PretrainSettings, self.settings.real.preset, self.settings.real.pretrain).train.global_batch

    def _base(self, seed: int, size: str = SIZE) -> Path:
        if size != SIZE:
            return self.out / f"seed-{seed}" / f"base-{size}"
        return Path(self.settings.run) if self.settings.run else self.out / f"seed-{seed}" / "base"

    def _part(self, seed: int, name: str, stage: int, batch: int, **further: Any) -> ContinuedPart:
        size = further.get("size", SIZE)
        path, base = self.out / f"seed-{seed}" / name, self._base(seed, size)
        after = () if self.settings.run and size == SIZE else (name_of(base),)
        return ContinuedPart(
            name=name_of(path), path=path, after=after, seed=seed, base=base, stage=stage, batch=batch, **further
        )

    def _check_records(self, part: ContinuedPart) -> None:
        """Looks at the file of records as the parts will, before anything is pretrained."""
        from headwater.launch.studies.acquisition.records import records_of

        if self.settings.facts:
            records_of(self.settings, part)

    def _check_model(self, parts: list[ContinuedPart]) -> None:
        waits = [part for part in parts if part.plan == REAL and not part.is_done()]
        if waits and not Path(self.settings.model).exists():
            fix = "`make smollm2` fetches one"
            raise MissingError(f"there is no model {self.settings.model}", expected="a directory or a file", fix=fix)

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


def base_overrides(settings: AcquisitionSettings, size: str = SIZE) -> list[str]:
    """The overrides of the preset that make the base model of a size."""
    further = settings.published.pretrain if settings.facts else []
    own = next((each.pretrain for each in settings.sizes if each.name == size), [])
    return [*settings.pretrain, *further, *own]


def base_settings(settings: AcquisitionSettings) -> PretrainSettings:
    """The configuration of the base model, that of the run that is taken or of the preset."""
    source = Path(settings.run) / "config.yaml" if settings.run else settings.preset
    if settings.run and not Path(source).is_file():
        raise MissingError(f"run={settings.run} is not a run directory", fix="correct the path, or leave run out")
    return load_config(PretrainSettings, source, base_overrides(settings))


def run_acquisition(settings: AcquisitionSettings) -> dict[str, Any]:
    """Runs the study and prints what became of the paper's claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Acquisition(settings, say).run(), settings.out)
