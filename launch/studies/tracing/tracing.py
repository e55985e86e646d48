"""Traces a model as it was after a step: every method's ranking, tail-patch, and what kinds of passages are named.

PATH/METHOD.jsonl      the rankings        PATH/classes.json     kinds of the first passages, for what was asked and for
                                                                 another question, by method and question
PATH/tail_patch.json   by method           PATH/tops.json        text of each method's first passage
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headwater.attribution.evaluation.any_index import baselines
from headwater.attribution.evaluation.baselines.bm25 import BM25
from headwater.attribution.evaluation.evaluate import GradientMethod, gradient_rankings, measure_tail_patch
from headwater.attribution.evaluation.ranking import Ranking, numbers_of_lists, write_rankings
from headwater.attribution.index.build import build_index
from headwater.attribution.settings import EvaluateSettings, IndexSettings
from headwater.attribution.tracing.queries import Query
from headwater.launch.studies.leave_out import lists_of, write_list
from headwater.launch.studies.tracing.classes import CLASSES, Sorter, Statement
from headwater.launch.studies.tracing.parts import DONE
from headwater.launch.studies.tracing.questions import (
    draw_asked,
    other_questions,
    read_questions,
    read_stated,
    seen_mask,
    statement_of,
)
from headwater.launch.studies.tracing.settings import (
    ASKED_ANOTHER,
    TRACED,
    UNSEEN,
    TracingSettings,
    corpus_run,
    model_run,
)
from headwater.train import parallel
from headwater.train.artifacts import RunDir, write_json
from headwater.train.numerics import keep_freed_memory, use_onednn
from headwater.train.parallel import World
from headwater.train.stream.passages import PassageSet, open_passages

SORTED = 10
"""Passages of a ranking that are sorted."""


def trace_at(path: Path, settings: TracingSettings, seed: int, size: str, step: int) -> None:
    """Leaves everything about one model after one step; done.json at the end."""
    run = model_run(settings, seed, size)
    questions = read_questions(run.path)
    for method in TRACED:
        build_index(index_settings(settings, method, run, seed, step))
    place = [each.name for each in settings.sizes].index(size)
    world = parallel.start()
    try:
        keep_freed_memory()
        use_onednn()
        passages = open_passages(run)
        # Each random ranking is another one, so that its slope over sizes and steps is a control.
        rankings = rank(run, settings, [seed, place, step], step, questions, world)
        for name, each in rankings.items():
            write_rankings(path / f"{name}.jsonl", each)
        others = other_questions(questions)
        write_rankings(path / f"{ASKED_ANOTHER}.jsonl", BM25().rank(with_words_of(questions, others), passages))
        sorter = Sorter(read_stated(run, questions), partial=bool(settings.questions))
        sort_passages(path, sorter, questions, others, rankings, passages)
        if step and settings.evaluate.tail_patch.enabled:
            asked = np.flatnonzero(seen_mask(questions)).tolist()
            some = {name: [each[i] for i in asked] for name, each in rankings.items()}
            evaluate = evaluation(settings, run, seed)
            measure_tail_patch(run, step, evaluate, [questions[i] for i in asked], some, passages, world, out=path)
    finally:
        parallel.stop()
    if step and settings.leave_out.facts:
        chosen = draw_asked(questions, settings.leave_out.facts, seed)
        untrained = set((corpus_run(settings, seed).path / UNSEEN).read_text().splitlines())
        for method in settings.leave_out.methods:
            ranked = (rankings[method][i].ranking for i in chosen)
            lists = [first_trained(each, untrained, settings.leave_out.top) for each in ranked]
            write_list(run, f"{method}-{step}", lists)
    write_json(path / DONE, {"lists": str(lists_of(run).name)})


def first_trained(ranked: Sequence[str], untrained: Collection[str], top: int) -> list[str]:
    """The first passages of a ranking but those that no model was shown: a training loses nothing without them."""
    return [name for name in ranked if name not in untrained][:top]


def index_settings(settings: TracingSettings, method: str, run: RunDir, seed: int, step: int) -> IndexSettings:
    """The index METHOD-STEP of a run. Before the first step there are no moments to correct with."""
    base: IndexSettings = getattr(settings, "index" if method == "headwater" else method)
    model = replace(base.model, run=str(run.path), path="", step=step)
    made = replace(base, out="", name=f"{method}-{step}", model=model, projection=replace(base.projection, seed=seed))
    return made if step else replace(made, correction="none")


def with_words_of(questions: Sequence[Query], others: Sequence[int | None]) -> list[Query]:
    """The questions in the words of others, with their own gold; those without another one as they are."""
    return [
        each if other is None else replace(each, prompt=questions[other].prompt, target=questions[other].target)
        for each, other in zip(questions, others, strict=True)
    ]


def evaluation(settings: TracingSettings, run: RunDir, seed: int) -> EvaluateSettings:
    """The study's settings as an evaluation of a run has them.

    Args:
        seed: of the random ranking, or of the questions that are patched.
    """
    weight, tail_patch = settings.evaluate.task_weight, settings.evaluate.tail_patch
    baselines = ["bm25", "random"]
    return EvaluateSettings(
        run=str(run.path), seed=seed, task_weight=weight, tail_patch=tail_patch, baselines=baselines
    )


def rank(
    run: RunDir, settings: TracingSettings, entropy: Sequence[int], step: int, questions: list[Query], world: World
) -> dict[str, list[Ranking]]:
    """The ranking of all passages for every question, by method."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    evaluate = evaluation(settings, run, seed)
    found = {
        name: gradient_rankings(run, GradientMethod(f"{name}-{step}", "task"), questions, evaluate, world)
        for name in TRACED
    }
    passages = open_passages(run)
    return found | {method.name: method.rank(questions, passages) for method in baselines(evaluate)}


def sort_passages(
    path: Path,
    sorter: Sorter,
    questions: Sequence[Query],
    others: Sequence[int | None],
    rankings: Mapping[str, Sequence[Ranking]],
    passages: PassageSet,
) -> None:
    """Writes classes.json, the kinds for what was asked and for what another question asks, and tops.json."""
    names = sorted({name for each in rankings.values() for one in each for name in one.ranking[:SORTED]})
    numbers = numbers_of_lists([names], passages)[0].tolist()
    texts = {name: passages.text(number) for name, number in zip(names, numbers, strict=True)}
    own = [statement_of(query) for query in questions]
    another = [None if other is None else own[other] for other in others]

    def kinds(asked: Statement | None, ranked: Sequence[str]) -> list[int]:
        if asked is None:
            return [-1] * len(ranked)
        return [CLASSES.index(sorter.class_of(asked, name, texts[name])) for name in ranked]

    classes = {
        key: {
            method: [kinds(what, one.ranking[:SORTED]) for what, one in zip(asked, each, strict=True)]
            for method, each in rankings.items()
        }
        for key, asked in (("own", own), ("another", another))
    }
    firsts = {method: [one.ranking[0] for one in each] for method, each in rankings.items()}
    shown = {name: texts[name] for each in firsts.values() for name in each}
    write_json(path / "classes.json", classes)
    write_json(path / "tops.json", {"first": firsts, "texts": shown})
