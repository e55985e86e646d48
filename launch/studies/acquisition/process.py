"""One part of the study of acquisition, in a process of its own.

    python -m headwater.launch.studies.acquisition.process runs/study/acquisition/seed-0/stage-300 [CORES]

A base model is pretrained as far as the last stage. A training that goes on from it takes over its corpus and
tokenizer, draws the records and their schedule, and is then `continued`, in as many processes as the study says.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headwater.configs import load_config, save_config
from headwater.launch.jobs.command import run_module
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, last_step, link, pretrain_whole, trained_steps
from headwater.launch.studies.acquisition.parts import REAL, SPACING, TASK, BasePart, ContinuedPart, StartPart
from headwater.launch.studies.acquisition.records import familiar_texts, grid_of, records_of
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.launch.studies.acquisition.study import Acquisition, base_overrides
from headwater.train.artifacts import RunDir, json_line, write_bytes, write_json, write_provenance
from headwater.train.facts.settings import FactsSettings
from headwater.train.places import note_place
from headwater.train.settings import PretrainSettings


def make_part(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    study = Acquisition(load_config(AcquisitionSettings, task["study"]))
    part = next(each for each in study.all_parts() if each.name == task["name"])
    if isinstance(part, BasePart):
        return pretrain_base(study, part)
    if isinstance(part, StartPart):
        start_real(study, part)
        return 0
    prepare_run(study, part)
    if study.settings.ranks == 1:
        from headwater.launch.studies.acquisition.continued import continue_run

        return continue_run(path)
    run_module("headwater.launch.studies.acquisition.continued", [str(path)], processes=study.settings.ranks)
    return 0


def pretrain_base(study: Acquisition, part: BasePart) -> int:
    """Pretrains a base model as far as the last stage, once the records are known to fit into its sequences."""
    from headwater.train.corpus.build import build_corpus

    asked = study.settings
    overrides = [
        *base_overrides(asked, part.size),
        f"out={part.path}",
        f"seed={part.seed}",
        f"corpus.seed={part.seed}",
        f"checkpoint.steps={list(part.stages)}",
        f"train.hard_stop={max(part.stages)}",
        "callbacks.probes.every=0",
    ]
    settings = load_config(PretrainSettings, asked.preset, overrides)
    if asked.used_familiar:
        overrides.append(familiar_source(study, part, settings))
        settings = load_config(PretrainSettings, asked.preset, overrides)
    if trained_steps(part.path) < last_step(settings):
        build_corpus(settings, lambda line: print(line, file=sys.stderr, flush=True))
        check_records(study, settings, RunDir(part.path))
    if asked.ranks == 1:
        return pretrain_whole(part.path, settings)
    run_module("headwater.train", [asked.preset, *overrides], processes=asked.ranks)
    return 0


def familiar_source(study: Acquisition, part: BasePart, base: PretrainSettings) -> str:
    """Writes what the base model reads of invented records; returns the override that adds it to its sources."""
    path = part.path / "familiar.jsonl"
    if not path.exists():
        texts = familiar_texts(study.settings, part.seed)
        lines = (json_line({"id": f"familiar-{number}", "text": text}) for number, text in enumerate(texts))
        write_bytes(path, "".join(lines).encode())
    return f"corpus.sources={json.dumps([*map(asdict, base.corpus.sources), {'kind': 'jsonl', 'path': str(path)}])}"


def check_records(study: Acquisition, base: PretrainSettings, run: RunDir) -> None:
    """Refuses records that do not fit into a base model's sequences, whichever training shows them.

    Raises:
        UserError: naming all that is wrong.
    """
    from headwater.launch.studies.acquisition.fitting import check_fit
    from headwater.train.corpus.encoding import end_of
    from headwater.train.facts.fictional import as_facts, meeting_schedule
    from headwater.train.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.from_file(run.tokenizer, base.corpus.tokenizer.bos)
    end = end_of(tokenizer, base.corpus)
    for part in (each for each in study.continued() if each.base == run.path):
        records, meetings = records_of(study.settings, part)
        made, _ = as_facts(records, meetings)
        schedule = meeting_schedule(records, meetings, start=part.stage, copies=part.copies)
        check_fit(made.passages, schedule, tokenizer, seq_len=base.corpus.seq_len, batch=part.batch, end=end)


def start_real(study: Acquisition, part: StartPart) -> None:
    """Imports the real model's weights, once for all seeds, and writes the seed's corpus in its tokens."""
    from headwater.launch.studies.pretrained.settings import shape_of, start_path
    from headwater.train.corpus.build import build_corpus
    from headwater.train.huggingface.importing import import_llama
    from headwater.train.locks import file_lock

    asked, start = study.settings, start_path(study.out)
    start.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(start.parent / "import"):
        if not start.exists():
            import_llama(asked.model, start)
    overrides = [*shape_of(start), *asked.real.pretrain, "facts.people=0", "facts.distractors=0"]
    overrides += [f"train.steps={asked.real.steps}", f"out={part.path}", f"seed={part.seed}"]
    settings = load_config(PretrainSettings, asked.real.preset, [*overrides, f"corpus.seed={part.seed}"])
    build_corpus(settings, lambda line: print(line, file=sys.stderr, flush=True))
    check_records(study, settings, RunDir(part.path))
    save_config(settings, RunDir(part.path).config)


def prepare_run(study: Acquisition, part: ContinuedPart) -> None:
    """The run directory: the base's corpus and tokenizer, the records, their schedule, the resolved config."""
    from headwater.train.corpus.injected import write_injected
    from headwater.train.facts.fictional import as_facts, meeting_schedule
    from headwater.train.facts.injection import write_schedule
    from headwater.train.facts.types import write_facts
    from headwater.train.tokenizer import TextTokenizer

    run, base = RunDir(part.path), RunDir(part.base)
    if (run.path / "part.json").exists():
        return
    records, meetings = records_of(study.settings, part)
    shown = [list(meeting.steps) for meeting in meetings]
    settings = run_settings(study, part, shown)
    made, leaking = as_facts(records, meetings)
    run.corpus.mkdir(parents=True, exist_ok=True)
    for source, place in ((base.corpus / "base", run.corpus / "base"), (base.tokenizer, run.tokenizer)):
        link(source, place)
    # A passage at the head of a sequence may be as long as the sequence, whatever the corpus's own are cut to.
    corpus = replace(settings.corpus, max_tokens=settings.corpus.seq_len)
    write_injected(run, corpus, made, TextTokenizer.from_file(run.tokenizer), part.seed)
    write_facts(made, run.facts)
    write_schedule(
        meeting_schedule(records, meetings, start=part.stage, copies=part.copies), run.facts / "schedule.parquet"
    )
    save_config(settings, run.config)
    write_provenance(run, world_size=study.settings.ranks)
    note = {"base": note_place(part.base, run.path), "seed": part.seed, "stage": part.stage, "batch": part.batch}
    groups = [meeting.group for meeting in meetings]
    write_json(
        run.path / "part.json",
        {**note, "copies": part.copies, "groups": groups, "shown": shown, "leaking_probes": leaking},
    )


def run_settings(study: Acquisition, part: ContinuedPart, shown: list[list[int]]) -> PretrainSettings:
    """The configuration of a training that goes on: the base's, but for what the study changes."""
    asked, settings = study.settings, load_config(PretrainSettings, part.base / "config.yaml")
    grid = grid_of(asked, part)
    settings.out = str(part.path)
    settings.facts = FactsSettings(people=0, distractors=0)
    settings.train.global_batch = part.batch
    settings.train.hard_stop = part.stage + grid.steps
    if part.plan != REAL:
        settings.train.steps = study.base_settings.train.steps
    settings.checkpoint = replace(settings.checkpoint, every=asked.checkpoint_every, keep=1, steps=[])
    dense = {part.stage + step + after for steps in shown for step in steps for after in range(grid.dense + 1)}
    dense |= {part.stage + step for step in further_steps(study, part, shown)}
    settings.callbacks.probes = replace(
        settings.callbacks.probes, every=grid.probe_every, steps=sorted(step for step in dense if step)
    )
    return settings


def further_steps(study: Acquisition, part: ContinuedPart, shown: list[list[int]]) -> set[int]:
    """Where a record that is met at intervals would have been met once more."""
    if part.plan != SPACING:
        return set()
    return {2 * steps[-1] - steps[-2] for steps in shown if len(steps) > 1}


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(make_part), TASK))
