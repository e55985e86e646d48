"""What the models of a seed are asked, what none of them is shown, and what is known to be stated where.

A question is a line of CORPUS/questions.jsonl: a probe of the planted people, or a line of the file that the settings
name, with `unseen`: whether its subject's passages are left out of every training.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headwater.attribution.evaluation.golds import with_gold_ids
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.configs.errors import UserError
from headwater.launch.studies.asking import Asked, asker
from headwater.launch.studies.tracing.classes import Statement
from headwater.launch.studies.tracing.settings import ANSWERS, QUESTIONS, UNSEEN, TracingSettings
from headwater.train.artifacts import RunDir, json_line, write_bytes
from headwater.train.parallel import World
from headwater.train.settings import PretrainSettings
from headwater.train.stream.passages import open_passages

Stated = dict[str, list[Statement]]
"""What is known to be stated, by the passage's id."""


def from_settings(settings: PretrainSettings, run: RunDir, world: World) -> Asked:
    """What a training calls to make the callback that asks them."""
    return asker("questions", run.path / QUESTIONS, run.path / ANSWERS, settings, run)


def write_questions(settings: TracingSettings, run: RunDir, seed: int) -> None:
    """Writes questions.jsonl and then unseen.txt into the directory of a seed's corpus.

    Raises:
        UserError: a given question has no subject or relation, or too few subjects can be left out.
    """
    if settings.questions:
        found = with_gold_ids(read_queries(settings.questions), open_passages(run))
        require_records(found, settings.questions)
    else:
        found = read_queries(run.facts / "probes.jsonl")
    unseen = draw_unseen(found, read_stated(run, found), settings.unseen, seed)
    kept = ("example_id", "prompt", "target", "subject", "relation")
    lines = []
    for each in found:
        record = {name: {**each.record, "example_id": each.example_id, "target": each.target}[name] for name in kept}
        record |= {"prompt": each.prompt, "gold": list(each.gold), "unseen": record["subject"] in unseen}
        lines.append(json_line(record))
    write_bytes(run.path / QUESTIONS, "".join(lines).encode())
    stated = read_stated(run, read_queries(run.path / QUESTIONS))
    left = sorted(name for name, each in stated.items() if any(one.subject in unseen for one in each))
    write_bytes(run.path / UNSEEN, "".join(f"{name}\n" for name in left).encode())


def draw_unseen(queries: Sequence[Query], stated: Stated, count: int, seed: int) -> set[str]:
    """Subjects whose passages are left out of every training, drawn by the seed among those that share no passage with
    another one that is asked about: what would be left out with them is what the others' questions need.

    Raises:
        UserError: these are too few, or all that are asked about.
    """
    subjects = list(dict.fromkeys(str(each.record["subject"]) for each in queries))
    if len(subjects) <= count:
        fix = "ask about more, or give a smaller unseen="
        expected = f"more than unseen = {count}"
        raise UserError("too few subjects are asked about", got=len(subjects), expected=expected, fix=fix)
    asked = set(subjects)
    together = [asked.intersection(one.subject for one in each) for each in stated.values()]
    sharing = {name for each in together if len(each) > 1 for name in each}
    alone = [name for name in subjects if name not in sharing]
    if len(alone) < count:
        raise UserError(
            "too few subjects have passages of their own",
            got=f"{len(alone)} of {len(subjects)}; the others' are about two or more subjects that are asked about",
            expected=f"at least unseen = {count}: without their passages nobody else's question lacks its gold",
            fix="ask about more, or give a smaller unseen=",
        )
    drawn = np.random.default_rng([seed, 13]).permutation(len(alone))[:count]
    return {alone[place] for place in drawn.tolist()}


def require_records(queries: Sequence[Query], path: str) -> None:
    lacking = [each for each in queries if not each.record.get("subject") or not each.record.get("relation")]
    lacking += [each for each in queries if not each.gold and each not in lacking]
    if lacking:
        raise UserError(
            f"{len(lacking)} question(s) of {path} cannot be studied",
            got=", ".join(each.example_id for each in lacking[:3]),
            expected="subject, relation and gold of each",
            fix="add them: passages are sorted by these",
        )


def statement_of(query: Query) -> Statement:
    """What a question asks for."""
    return Statement(str(query.record["subject"]), str(query.record["relation"]), query.target.strip())


def read_stated(run: RunDir, questions: Sequence[Query]) -> Stated:
    """What the planted facts' records, and the questions' golds, say that passages state."""
    stated: dict[str, set[Statement]] = {}
    facts = run.facts / "facts.jsonl"
    for line in facts.read_text().splitlines() if facts.exists() else ():
        fact = json.loads(line)
        for name in fact["gold"]:
            stated.setdefault(name, set()).add(Statement(fact["subject"], fact["relation"], fact["value"]))
    for query in questions:
        for name in query.gold:
            stated.setdefault(name, set()).add(statement_of(query))
    return {name: sorted(each, key=str) for name, each in stated.items()}


def seen_mask(questions: Sequence[Query]) -> np.ndarray:
    """Which questions are about subjects that the models were shown: bool [questions]."""
    return np.array([not query.record["unseen"] for query in questions])


def other_questions(questions: Sequence[Query]) -> list[int | None]:
    """For each question the next one that has nothing in common with it, but that both were shown or both were not:
    another subject, relation and answer, and no gold passage of its own. None where there is no such question."""

    def apart(a: Query, b: Query) -> bool:
        one, other = statement_of(a), statement_of(b)
        differ = one.subject != other.subject and one.relation != other.relation and one.value != other.value
        return differ and a.record["unseen"] == b.record["unseen"] and not {*a.gold} & {*b.gold}

    found = []
    for place, query in enumerate(questions):
        following = itertools.chain(range(place + 1, len(questions)), range(place))
        found.append(next((other for other in following if apart(query, questions[other])), None))
    return found


def draw_asked(questions: Sequence[Query], count: int, seed: int) -> list[int]:
    """Numbers of the questions whose passages are left out: of those that were shown, whatever a model knows of them,
    so that all sizes are compared on the same ones."""
    seen = np.flatnonzero(seen_mask(questions))
    return sorted(np.random.default_rng([seed, 14]).permutation(seen)[:count].tolist())


def draw_others(stated: Stated, questions: Sequence[Query], asked: Sequence[int], count: int, seed: int) -> list[str]:
    """Passages that state something else that the models are shown: what leaving out as many of their kind does."""
    gold = {name for place in asked for name in questions[place].gold}
    unseen = {query.record["subject"] for query in questions if query.record["unseen"]}
    others = sorted(
        name for name, each in stated.items() if name not in gold and not any(one.subject in unseen for one in each)
    )
    drawn = np.random.default_rng([seed, 15]).permutation(len(others))[:count]
    return [others[place] for place in drawn.tolist()]


def read_questions(directory: Path) -> list[Query]:
    """The questions of a corpus's or a model's directory."""
    return [replace(each, record=dict(each.record)) for each in read_queries(directory / QUESTIONS)]
