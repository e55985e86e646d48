"""One part of the study of tracing, in a process of its own.

    python -m headwater.launch.studies.tracing.process runs/study/tracing/seed-0/small [CORES]

A corpus is built with its questions; the models of a seed take it over, and are asked them at every amount of tokens.
A model then names what is left out whatever its size; a tracing of it names what a method finds. A training again takes
one of these lists out. The recipe is taken apart on another run, to which nothing is written.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from headwater.attribution.tracing.queries import Query
from headwater.configs import load_config
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, link, pretrain_whole, share_corpus
from headwater.launch.studies.leave_out import lists_of, probed, write_lists
from headwater.launch.studies.tracing.questions import (
    draw_asked,
    draw_others,
    read_questions,
    read_stated,
    write_questions,
)
from headwater.launch.studies.tracing.settings import (
    ANSWERS,
    QUESTIONS,
    UNSEEN,
    TracingSettings,
    corpus_run,
    model_run,
)
from headwater.train.artifacts import RunDir, write_bytes
from headwater.train.settings import PretrainSettings


def make_part(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    factors = task["factors"]
    what, out = factors["part"], path.parent if factors["part"] == "recipe" else path.parent.parent
    settings = load_config(TracingSettings, out / "config.yaml", [f"out={out}"])
    if what == "recipe":
        from headwater.launch.studies.tracing.recipe import trace_rows

        trace_rows(path, settings.recipe)
        return 0
    seed = factors["seed"]
    if what == "traced":
        from headwater.launch.studies.tracing.tracing import trace_at

        trace_at(path, settings, seed, factors["size"], factors["step"])
        return 0
    pretraining = load_config(PretrainSettings, task["preset"], task["overrides"])
    if what == "corpus":
        from headwater.train.corpus.build import build_corpus

        build_corpus(pretraining)
        write_questions(settings, RunDir(path), seed)
        return 0
    corpus = corpus_run(settings, seed).path
    share_corpus(corpus, path)
    link(corpus / QUESTIONS, path / QUESTIONS)
    if what == "retraining":
        lacking = (lists_of(model_run(settings, seed, factors["size"])) / f"{factors['arm']}.txt").read_text()
        write_bytes(path / "exclude.txt", ((corpus / UNSEEN).read_text() + lacking).encode())
    status = pretrain_whole(path, pretraining)
    if status == 0 and what == "model" and settings.leave_out.facts:
        name_left_out(RunDir(path), settings, seed)
    return status


def name_left_out(run: RunDir, settings: TracingSettings, seed: int) -> None:
    """Writes leave_out/ of a model: the facts that are drawn, their gold passages, and as many random ones."""
    questions = read_questions(run.path)
    chosen = draw_asked(questions, settings.leave_out.facts, seed)
    stated = read_stated(run, questions)
    golds = golds_of(questions, chosen)
    others = draw_others(stated, questions, chosen, len(golds), seed)
    named = {"gold": [golds], "random": [others]}
    write_lists(run, questions, probed(run, file=run.path / ANSWERS), chosen, named)


def golds_of(questions: list[Query], chosen: list[int]) -> list[str]:
    """The passages that state what some questions ask, each once."""
    return sorted({name for place in chosen for name in questions[place].gold})


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(make_part)))
