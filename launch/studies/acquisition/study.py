"""How facts are acquired and forgotten in pretraining: the study of Chang et al. 2024 (arXiv 2406.11813).

    headwater study acquisition                                      # configs/study/acquisition.yaml, two CPU cores
    headwater study acquisition study/acquisition facts=fictional.json out=runs/study/published

A base model is pretrained (or taken: run=DIR) up to the steps in `stages`. From each of these checkpoints, weights and
moments, training goes on over the same stream, with fictional records put into it; probes of three depths are followed
densely, also long after the last injection. Every part is a run directory under `out`; a study that was killed goes on
where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headwater.configs import UserError, load_config, save_config
from headwater.launch.jobs.command import run_module
from headwater.launch.parts.settings import keep_settings
from headwater.launch.studies.acquisition.parts import Part
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.train.artifacts import RunDir, fingerprint, write_json, write_provenance
from headwater.train.facts.settings import FactsSettings
from headwater.train.settings import PretrainSettings


class Acquisition:
    """One study."""

    def __init__(self, settings: AcquisitionSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)
        stop = max(settings.stages) + settings.steps
        self.base_settings = load_config(
            PretrainSettings, Path(settings.run) / "config.yaml" if settings.run else settings.preset, settings.pretrain
        )
        if self.base_settings.train.steps < stop:
            raise UserError(
                "the base model's learning-rate schedule ends before the study does",
                got=f"train.steps = {self.base_settings.train.steps}",
                expected=f"at least the last stage and the study's steps, {stop}",
                fix=f"add train.steps={stop} to `pretrain`, or choose earlier stages",
            )

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary."""
        from headwater.launch.studies.acquisition.page import write_report
        from headwater.launch.studies.acquisition.summary import analyse

        self._check_same()
        parts = self.parts()

        def run_seed(seed: int) -> None:
            for part in parts:
                if part.seed == seed:
                    self._run_part(part)

        # A seed's parts share its base model, so they follow one another.
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            list(pool.map(run_seed, self.settings.seeds))
        summary = analyse(self.settings, parts)
        write_report(self.settings, parts, summary)
        return summary

    def _run_part(self, part: Part) -> None:
        if (part.path / "done.json").exists():
            self.say(f"{part.path.name} of seed {part.seed}: done before")
            return
        self._base(part)
        self.say(f"{part.path.name} of seed {part.seed} ...")
        self._prepare(part)
        self._start("headwater.launch.studies.acquisition.continued", [str(part.path)])
        if not (part.path / "done.json").exists():
            raise KeyboardInterrupt  # asked to stop, and saved

    @property
    def _threads(self) -> int:
        """CPU threads of a process: as configured, else its share of the cores."""
        own = self.base_settings.train.threads
        return own or (
            max(1, len(os.sched_getaffinity(0)) // self.settings.parallel) if self.settings.parallel > 1 else 0
        )

    def parts(self) -> list[Part]:
        """The runs of the study: per seed and stage the plain one, then the batch ablation at the first stage."""
        batch = self.base_settings.train.global_batch
        for other in self.settings.batches:
            if other % batch or other == batch:
                raise UserError(
                    "batches", got=other, expected=f"multiples of the base model's train.global_batch {batch}"
                )
        made = []
        for seed in self.settings.seeds:
            home = self.out / f"seed-{seed}"
            base = Path(self.settings.run) if self.settings.run else home / "base"
            for stage in self.settings.stages:
                made.append(Part(home / f"stage-{stage}", base, seed, stage, batch, 1))
            for other in self.settings.batches:
                for copies in (1, other // batch):
                    path = home / f"stage-{self.settings.stages[0]}_batch-{other}_copies-{copies}"
                    made.append(Part(path, base, seed, self.settings.stages[0], other, copies))
        return made

    def _check_same(self) -> None:
        same = replace(self.settings, resamples=0, parallel=1)
        keep_settings(
            self.out / "study.json",
            {"pretraining": asdict(self.base_settings), **asdict(same)},
            mark=fingerprint([asdict(self.base_settings), asdict(same)]),
            what=f"{self.out} holds a study of other settings",
            fix="choose another out=, or remove that directory",
            note={"settings": asdict(self.settings)},
        )

    def _base(self, part: Part) -> None:
        """Pretrains the base model as far as the last stage."""
        wanted = [part.base / "checkpoints" / f"step-{stage:08d}" / "checkpoint.json" for stage in self.settings.stages]
        missing = [path for path in wanted if not path.exists()]
        if missing and self.settings.run:
            fix = "choose stages= among its checkpoints, or pretrain it with checkpoint.steps set"
            raise UserError(f"{part.base} has no checkpoint at every stage", got=f"no {missing[0].parent}", fix=fix)
        if not missing:
            return
        self.say(f"base model of seed {part.seed} ...")
        seeds = [f"out={part.base}", f"seed={part.seed}", f"corpus.seed={part.seed}"]
        stages = f"checkpoint.steps={self.settings.stages}"
        stop = [
            f"train.hard_stop={max(self.settings.stages)}",
            "callbacks.probes.every=0",
            f"train.threads={self._threads}",
        ]
        overrides = [*self.settings.pretrain, *seeds, stages, *stop]
        self._start("headwater.train", [self.settings.preset, *overrides])
        if not all(path.exists() for path in wanted):
            raise KeyboardInterrupt

    def _start(self, module: str, arguments: list[str]) -> None:
        run_module(module, arguments, processes=self.settings.ranks)

    def _prepare(self, part: Part) -> None:
        """The run directory: the base's corpus and tokenizer, the records, their schedule, the resolved config."""
        from headwater.train.corpus.injected import write_injected
        from headwater.train.facts.injection import write_schedule
        from headwater.train.facts.types import write_facts
        from headwater.train.tokenizer import TextTokenizer

        run, base = RunDir(part.path), RunDir(part.base)
        if (run.path / "part.json").exists():
            return
        settings = self._settings_of(part)
        made, scenarios, left_out, schedule = self._plan(part)
        run.corpus.mkdir(parents=True, exist_ok=True)
        for source, place in ((base.corpus / "base", run.corpus / "base"), (base.tokenizer, run.tokenizer)):
            if not place.is_symlink():
                place.symlink_to(source.resolve())
        # A passage at the head of a row may be as long as the row, whatever the corpus's own passages are cut to.
        corpus = replace(settings.corpus, max_tokens=settings.corpus.seq_len)
        write_injected(run, corpus, made, TextTokenizer.from_file(run.tokenizer), part.seed)
        write_facts(made, run.facts)
        write_schedule(schedule, run.facts / "schedule.parquet")
        save_config(settings, run.config)
        write_provenance(run, world_size=self.settings.ranks)
        note = {"base": str(part.base), "seed": part.seed, "stage": part.stage, "batch": part.batch}
        grid = {"interval": self.settings.interval, "count": self.settings.count, "dense": self.settings.dense}
        write_json(
            run.path / "part.json",
            {**note, **grid, "copies": part.copies, "scenarios": scenarios, "leaking_probes": left_out},
        )

    def _settings_of(self, part: Part) -> PretrainSettings:
        settings = load_config(PretrainSettings, part.base / "config.yaml")
        settings.out = str(part.path)
        settings.facts = FactsSettings(people=0, distractors=0)
        settings.train.global_batch = part.batch
        settings.train.hard_stop = part.stage + self.settings.steps
        settings.train.steps = self.base_settings.train.steps
        settings.train.threads = self._threads
        settings.checkpoint = replace(settings.checkpoint, every=self.settings.checkpoint_every, keep=1, steps=[])
        settings.callbacks.probes = replace(
            settings.callbacks.probes, every=self.settings.probe_every, steps=self._dense_steps(part.stage)
        )
        return settings

    def _dense_steps(self, stage: int) -> list[int]:
        injections = [stage + turn * self.settings.interval for turn in range(self.settings.count)]
        return [step + after for step in injections for after in range(self.settings.dense + 1)]

    def _plan(self, part: Part) -> tuple[Any, list[str], int, Any]:
        """Facts, the scenario of each record, probes left out, and the schedule in steps of the stream."""
        import numpy as np

        from headwater.train.facts.fictional import (
            as_facts,
            assign_scenarios,
            fictional_schedule,
            make_records,
            read_records,
        )
        from headwater.train.facts.injection import Schedule

        wanted = self.settings.records
        records = read_records(self.settings.facts) if self.settings.facts else make_records(wanted, part.seed)
        records = records[:wanted] if wanted else records
        scenarios = assign_scenarios(records, self.settings.control)
        made, left_out = as_facts(records, scenarios)
        once = fictional_schedule(
            records, scenarios, start=part.stage, interval=self.settings.interval, count=self.settings.count
        )
        steps = np.repeat(once.steps, part.copies)
        ids = [each for each in once.passage_ids for _ in range(part.copies)]
        return made, scenarios, left_out, Schedule(steps, ids)


def run_acquisition(settings: AcquisitionSettings) -> dict[str, Any]:
    """Runs the study and prints what became of the paper's claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Acquisition(settings, say).run(), settings.out)
