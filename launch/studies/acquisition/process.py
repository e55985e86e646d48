"""One part of the study of acquisition, in a process of its own.

    python -m headwater.launch.studies.acquisition.process runs/study/acquisition/seed-0/stage-300 [CORES]

A base model is pretrained as far as the last stage. A training that goes on from it takes over its corpus and
tokenizer, draws the records and their schedule, and is then `continued`, in as many processes as the study says.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from headwater.configs import load_config, save_config
from headwater.launch.jobs.command import run_module
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import link
from headwater.launch.studies.acquisition.parts import TASK, BasePart, ContinuedPart
from headwater.launch.studies.acquisition.records import records_of
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.launch.studies.acquisition.study import Acquisition
from headwater.train.artifacts import RunDir, write_json, write_provenance
from headwater.train.facts.settings import FactsSettings
from headwater.train.places import note_place
from headwater.train.settings import PretrainSettings


def make_part(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    study = Acquisition(load_config(AcquisitionSettings, task["study"]))
    parts: list[BasePart | ContinuedPart] = [*study.bases(), *study.parts()]
    part = next(each for each in parts if each.name == task["name"])
    if isinstance(part, BasePart):
        pretrain_base(study.settings, part)
    else:
        prepare_run(study, part)
        continued = "headwater.launch.studies.acquisition.continued"
        run_module(continued, [str(path)], processes=study.settings.ranks)
    return 0


def pretrain_base(settings: AcquisitionSettings, part: BasePart) -> None:
    """Pretrains a base model as far as the last stage."""
    overrides = [
        *settings.pretrain,
        f"out={part.path}",
        f"seed={part.seed}",
        f"corpus.seed={part.seed}",
        f"checkpoint.steps={list(part.stages)}",
        f"train.hard_stop={max(part.stages)}",
        "callbacks.probes.every=0",
    ]
    run_module("headwater.train", [settings.preset, *overrides], processes=settings.ranks)


def prepare_run(study: Acquisition, part: ContinuedPart) -> None:
    """The run directory: the base's corpus and tokenizer, the records, their schedule, the resolved config."""
    from headwater.train.corpus.injected import write_injected
    from headwater.train.facts.injection import write_schedule
    from headwater.train.facts.types import write_facts
    from headwater.train.tokenizer import TextTokenizer

    run, base = RunDir(part.path), RunDir(part.base)
    if (run.path / "part.json").exists():
        return
    settings = run_settings(study, part)
    made, scenarios, left_out, schedule = records_of(study.settings, part)
    run.corpus.mkdir(parents=True, exist_ok=True)
    for source, place in ((base.corpus / "base", run.corpus / "base"), (base.tokenizer, run.tokenizer)):
        link(source, place)
    # A passage at the head of a sequence may be as long as the sequence, whatever the corpus's own are cut to.
    corpus = replace(settings.corpus, max_tokens=settings.corpus.seq_len)
    write_injected(run, corpus, made, TextTokenizer.from_file(run.tokenizer), part.seed)
    write_facts(made, run.facts)
    write_schedule(schedule, run.facts / "schedule.parquet")
    save_config(settings, run.config)
    write_provenance(run, world_size=study.settings.ranks)
    note = {"base": note_place(part.base, run.path), "seed": part.seed, "stage": part.stage, "batch": part.batch}
    grid = {name: getattr(study.settings, name) for name in ("interval", "count", "dense")}
    write_json(
        run.path / "part.json",
        {**note, **grid, "copies": part.copies, "scenarios": scenarios, "leaking_probes": left_out},
    )


def run_settings(study: Acquisition, part: ContinuedPart) -> PretrainSettings:
    """The configuration of a training that goes on: the base's, but for what the study changes."""
    asked, settings = study.settings, load_config(PretrainSettings, part.base / "config.yaml")
    settings.out = str(part.path)
    settings.facts = FactsSettings(people=0, distractors=0)
    settings.train.global_batch = part.batch
    settings.train.hard_stop = part.stage + asked.steps
    settings.train.steps = study.base_settings.train.steps
    settings.checkpoint = replace(settings.checkpoint, every=asked.checkpoint_every, keep=1, steps=[])
    injections = [part.stage + turn * asked.interval for turn in range(asked.count)]
    dense = [step + after for step in injections for after in range(asked.dense + 1)]
    settings.callbacks.probes = replace(settings.callbacks.probes, every=asked.probe_every, steps=dense)
    return settings


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], make_part, TASK))
