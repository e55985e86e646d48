"""Fictional records: passages about things that do not exist, and probes of three depths that ask for what they state.

Reads the published Fictional Knowledge format (Chang et al. 2024), or invents records. An invented record is a chain
of statements about a town; its paraphrases say the same in other words of the same number, so that a paraphrase is no
shorter than the original, and no probe contains its target.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.facts.draws import generator, invented_names
from headwater.train.facts.injection import Schedule
from headwater.train.facts.types import Fact, FactPassage, FactSet, Probe

DEPTHS = ("memorization", "semantic", "composition")
FIELDS = {"memorization": "mem", "semantic": "gen", "composition": "hard_gen"}
"""How the published format calls the depths."""
SCENARIOS = ("paraphrase", "duplicate", "once", "control")
"""How a record is met: in other words each time, in the same words, once, or never."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and what follows it."""

    depth: str
    prompt: str
    target: str

    @property
    def leaks(self) -> bool:
        """Whether the prompt already holds the target."""
        return self.target.strip().casefold() in self.prompt.casefold()


@dataclass(frozen=True, slots=True)
class Record:
    """A passage, the same in other words, and its questions."""

    text: str
    paraphrases: tuple[str, ...]
    questions: tuple[Question, ...]


def read_records(path: str | Path) -> list[Record]:
    """Reads a JSON list (or one JSON object a line) of the published format.

    Raises:
        MissingError, CorruptError: naming the record.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path} is missing", fix="give a JSON file of fictional records as facts=")
    text = path.read_text(encoding="utf-8")
    try:
        lines = (line for line in text.split("\n") if line.strip())
        entries = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise CorruptError(f"{path} is not JSON", got=str(error), expected="a list of records") from None
    if not isinstance(entries, list) or not entries:
        raise CorruptError(f"{path} holds no records", got=type(entries).__name__, expected="a list of records")
    return [_record(entry, f"{path}, record {number}") for number, entry in enumerate(entries)]


def _record(entry: Any, where: str) -> Record:
    try:
        questions = []
        for depth, field in FIELDS.items():
            pairs = zip(entry[f"{field}_input"], entry[f"{field}_target"], strict=True)
            questions += [Question(depth, str(prompt).rstrip(), str(target).strip()) for prompt, target in pairs]
        paraphrases = tuple(str(each) for each in entry.get("paraphrases") or ())
        return Record(str(entry["train_context"]), paraphrases, tuple(questions))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = "train_context, and as many mem_/gen_/hard_gen_input as _target"
        raise CorruptError(
            f"{where} is not of the Fictional Knowledge format", got=repr(error), expected=expected
        ) from None


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence that ends with its value: `{subject} phrase {value}.` All phrases of a statement have as many words;
    `reworded` says the same in a sentence of another build, and never stands in a passage."""

    subject: str
    value: str
    phrases: tuple[str, ...]
    reworded: str


STATEMENTS = (
    Statement(
        "The town of {town}",
        "{founder}",
        (
            "was founded by",
            "was established by",
            "was settled by",
            "was started by",
            "was begun by",
            "was created by",
            "was built by",
            "was planned by",
            "was raised by",
            "was chartered by",
        ),
        "{town} owes its beginnings to",
    ),
    Statement(
        "The settler {founder}",
        "{village}",
        (
            "came from distant",
            "arrived from distant",
            "hailed from distant",
            "travelled from distant",
            "moved from distant",
            "sailed from distant",
            "rode from distant",
            "wandered from distant",
            "walked from distant",
            "departed from distant",
        ),
        "The birthplace of {founder} lies far away in",
    ),
    Statement(
        "The old houses of {town}",
        "{river}",
        (
            "overlook the river",
            "border the river",
            "face the river",
            "line the river",
            "follow the river",
            "flank the river",
            "watch the river",
            "guard the river",
            "touch the river",
            "fringe the river",
        ),
        "Windows in {town} open onto the waters of the",
    ),
    Statement(
        "The cold water of the {river}",
        "{mountain}",
        (
            "springs from mount",
            "flows from mount",
            "runs from mount",
            "falls from mount",
            "comes from mount",
            "descends from mount",
            "rushes from mount",
            "drops from mount",
            "pours from mount",
            "tumbles from mount",
        ),
        "Upstream the {river} is a mere brook on",
    ),
    Statement(
        "The high slopes of {mountain}",
        "{mineral}",
        (
            "are mined for",
            "are searched for",
            "are dug for",
            "are known for",
            "are worked for",
            "are prized for",
            "are quarried for",
            "are visited for",
            "are explored for",
            "are famous for",
        ),
        "Miners climb {mountain} in search of",
    ),
)
COMPOSITIONS = (
    ("The person who founded the town of {town} came from distant", "{village}"),
    ("The river beside the old houses of {town} springs from mount", "{mountain}"),
    ("The mountain where the river {river} has its source is mined for", "{mineral}"),
    ("The mountain whose water flows past the houses of {town} is mined for", "{mineral}"),
)
"""Questions that join two or three statements; what joins them is not named."""
ROLES = ("town", "founder", "village", "river", "mountain", "mineral")
ENDINGS = ("an", "ek", "is", "on", "ia", "eth", "ix", "yn")
WORDINGS = len(STATEMENTS[0].phrases)


def make_records(count: int, seed: int) -> list[Record]:
    """Invents records; each has an original, `WORDINGS` - 1 paraphrases, and 5, 5 and 4 questions by depth.

    Args:
        seed: another seed gives other names.
    """
    rng = generator(seed, 7)
    names = invented_names(count * len(ROLES), ENDINGS, rng)
    records = []
    for number in range(count):
        drawn = names[number * len(ROLES) : (number + 1) * len(ROLES)]
        records.append(_invented(dict(zip(ROLES, drawn, strict=True)), rng))
    return records


def _invented(names: dict[str, str], rng: np.random.Generator) -> Record:
    wordings = [rng.permutation(WORDINGS).tolist() for _ in STATEMENTS]
    texts = []
    for lap in range(WORDINGS):
        order = list(range(len(STATEMENTS))) if lap == 0 else rng.permutation(len(STATEMENTS)).tolist()
        texts.append(" ".join(f"{_said(place, wordings[place][lap], names)}." for place in order))
    questions = []
    as_read = [f"{each.subject} {each.phrases[order[0]]}" for each, order in zip(STATEMENTS, wordings, strict=True)]
    for depth, prompts in (("memorization", as_read), ("semantic", [each.reworded for each in STATEMENTS])):
        for prompt, statement in zip(prompts, STATEMENTS, strict=True):
            questions.append(Question(depth, prompt.format(**names), statement.value.format(**names)))
    for prompt, target in COMPOSITIONS:
        questions.append(Question("composition", prompt.format(**names), target.format(**names)))
    return Record(texts[0], tuple(texts[1:]), tuple(questions))


def _said(place: int, wording: int, names: Mapping[str, str]) -> str:
    statement = STATEMENTS[place]
    return f"{statement.subject} {statement.phrases[wording]} {statement.value}".format(**names)


def assign_scenarios(records: Sequence[Record], control: int) -> list[str]:
    """The scenario of each record.

    Where only some have paraphrases, as published, those are `paraphrase`, the last `control` are never shown, and the
    others are `duplicate` and `once` in equal halves, in order; where all have, the scenarios take thirds in order.

    Raises:
        UserError: a scenario would have no record.
    """
    shown = len(records) - control
    able = [number for number in range(max(shown, 0)) if records[number].paraphrases]
    if len(able) == shown:
        able = able[: -(-shown // 3)]
    rest = [number for number in range(max(shown, 0)) if number not in set(able)]
    half = -(-len(rest) // 2)
    if not able or not rest[half:]:
        fix = "give more records, some with paraphrases, or a smaller control"
        raise UserError("too few records for the scenarios", got=f"{len(records)} with {control} held out", fix=fix)
    of = (
        dict.fromkeys(able, "paraphrase") | dict.fromkeys(rest[:half], "duplicate") | dict.fromkeys(rest[half:], "once")
    )
    return [of.get(number, "control") for number in range(len(records))]


def record_name(number: int) -> str:
    return f"fictional/{number:05d}"


def as_facts(records: Sequence[Record], scenarios: Sequence[str]) -> tuple[FactSet, int]:
    """Passages and probes of records, and how many questions were left out because their prompt holds the target.

    A passage is `fictional/NUMBER#0`, its paraphrases #1, #2, ...; only what the scenario shows becomes a passage. A
    probe's relation is its depth, its subject the record.
    """
    made, left_out = FactSet(), 0
    for number, (record, scenario) in enumerate(zip(records, scenarios, strict=True)):
        name = record_name(number)
        texts = [] if scenario == "control" else [record.text]
        texts += record.paraphrases if scenario == "paraphrase" else ()
        ids = [f"{name}#{k}" for k in range(len(texts))]
        facts = [f"{name}:{k}" for k in range(len(record.questions))]
        made.passages.extend(FactPassage(i, text, facts, "gold") for i, text in zip(ids, texts, strict=True))
        for fact_id, question in zip(facts, record.questions, strict=True):
            if question.leaks:
                left_out += 1
                continue
            made.facts.append(Fact(fact_id, name, question.depth, question.target, ids))
            made.probes.append(Probe(fact_id, fact_id, question.depth, name, question.prompt, question.target, ids))
    return made, left_out


def injection_steps(scenario: str, start: int, interval: int, count: int) -> list[int]:
    """The steps at which a record of a scenario is shown."""
    turns = {"control": 0, "once": 1}.get(scenario, count)
    return [start + turn * interval for turn in range(turns)]


def fictional_schedule(
    records: Sequence[Record], scenarios: Sequence[str], *, start: int, interval: int, count: int
) -> Schedule:
    """The visits: at each injection every record of a scenario once, paraphrases in turn, the original first."""
    visits: list[tuple[int, str]] = []
    for number, (record, scenario) in enumerate(zip(records, scenarios, strict=True)):
        for turn, step in enumerate(injection_steps(scenario, start, interval, count)):
            shown = turn % (1 + len(record.paraphrases)) if scenario == "paraphrase" else 0
            visits.append((step, f"{record_name(number)}#{shown}"))
    visits.sort(key=lambda visit: visit[0])
    return Schedule(np.array([step for step, _ in visits], dtype=np.int32), [passage for _, passage in visits])
