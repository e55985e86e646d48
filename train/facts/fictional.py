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
PROBLEMS = 12
"""Records that a refusal names; of more it says how many."""


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
        MissingError, CorruptError: naming every record that is not of it.
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
    records, wrong = [], []
    for number, entry in enumerate(entries):
        try:
            records.append(_record(entry))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wrong.append(f"record {number}: {error!r}")
    if wrong:
        raise CorruptError(
            f"{path} is not of the Fictional Knowledge format",
            got="; ".join(wrong[:PROBLEMS]) + (f"; and {len(wrong) - PROBLEMS} more" if len(wrong) > PROBLEMS else ""),
            expected="of each record train_context, and as many mem_/gen_/hard_gen_input as _target",
        )
    return records


def _record(entry: Any) -> Record:
    questions = []
    for depth, field in FIELDS.items():
        pairs = zip(entry[f"{field}_input"], entry[f"{field}_target"], strict=True)
        questions += [Question(depth, str(prompt).rstrip(), str(target).strip()) for prompt, target in pairs]
    paraphrases = tuple(str(each) for each in entry.get("paraphrases") or ())
    text = str(entry["train_context"])
    if not text.strip() or not all(question.target for question in questions):
        raise ValueError("an empty passage or target")
    return Record(text, paraphrases, tuple(questions))


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
    ("Before settling in {town}, its first citizen had lived in", "{village}"),
    ("Rain that feeds the stream past {town} falls high up on", "{mountain}"),
    ("Near the spring of the {river}, workers dig up", "{mineral}"),
    ("What workers dig up far above the valley of {town} is", "{mineral}"),
)
"""Questions that join two or three statements; what joins them is not named, and none ends in a statement's words: the
last words before the target would else be what the records taught the model to go on from."""
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

    Where only some have paraphrases, as published, those are `paraphrase`, as many after them `duplicate`, as many
    again `once`, and what is left is never shown: by number 0-39, 40-79, 80-119 and 120-129 of the published 130.
    Where all have, the last `control` are never shown, and the scenarios take thirds of the others in order.

    Raises:
        UserError: a scenario would have no record.
    """
    able = sum(bool(record.paraphrases) for record in records)
    if able < len(records):
        if not all(record.paraphrases for record in records[:able]):
            raise UserError(
                "records with paraphrases must come first, as published",
                got=f"record {next(n for n, record in enumerate(records) if not record.paraphrases)} has none",
                expected=f"the first {able} to have some",
                fix="sort the file",
            )
        size = min(able, -(-(len(records) - able) // 2))
        sizes = (able, size, min(size, len(records) - able - size))
    else:
        shown = max(len(records) - control, 0)
        size = -(-shown // 3)
        sizes = (size, -(-(shown - size) // 2), (shown - size) // 2)
    if not all(sizes):
        fix = "give more records, some with paraphrases, or a smaller control"
        raise UserError("too few records for the scenarios", got=f"{len(records)} with {control} held out", fix=fix)
    named = [name for name, size in zip(SCENARIOS, sizes, strict=False) for _ in range(size)]
    return named + ["control"] * (len(records) - len(named))


@dataclass(frozen=True, slots=True)
class Meeting:
    """How a record is met.

    Attributes:
        group: what it is compared as: a scenario, or how often it is met.
        steps: when, from where the records begin; none of a control.
        reworded: in other words each time, the original first; else always in the original's.
    """

    group: str
    steps: tuple[int, ...]
    reworded: bool = False


def scenario_meetings(scenarios: Sequence[str], *, interval: int, count: int, spread: int = 1) -> list[Meeting]:
    """How the records of the scenarios are met: every `interval` steps, `count` times, or once.

    Args:
        spread: steps over which the records of a scenario are dealt out, as evenly as may be: a step then shows so
            many of each fewer. Each record keeps its own distance from one meeting to the next.
    """
    met: dict[str, int] = {}
    made = []
    for scenario in scenarios:
        place = met.get(scenario, 0)
        met[scenario] = place + 1
        turns = {"control": 0, "once": 1}.get(scenario, count)
        steps = tuple(place % spread + turn * interval for turn in range(turns))
        made.append(Meeting(scenario, steps, scenario == "paraphrase"))
    return made


def record_name(number: int) -> str:
    return f"fictional/{number:05d}"


def as_facts(records: Sequence[Record], meetings: Sequence[Meeting]) -> tuple[FactSet, list[str]]:
    """Passages and probes of records, and the questions that were left out because their prompt holds the target.

    A passage is `fictional/NUMBER#0`, its paraphrases #1, #2, ...; only what is shown becomes a passage. A probe's
    relation is its depth, its subject the record.
    """
    made, left_out = FactSet(), []
    for number, (record, meeting) in enumerate(zip(records, meetings, strict=True)):
        name = record_name(number)
        texts = [record.text] if meeting.steps else []
        texts += record.paraphrases[: len(meeting.steps) - 1] if meeting.steps and meeting.reworded else ()
        ids = [f"{name}#{k}" for k in range(len(texts))]
        facts = [f"{name}:{k}" for k in range(len(record.questions))]
        made.passages.extend(FactPassage(i, text, facts, "gold") for i, text in zip(ids, texts, strict=True))
        for fact_id, question in zip(facts, record.questions, strict=True):
            if question.leaks:
                left_out.append(f"record {number}, {question.depth}: {question.prompt} [{question.target}]")
                continue
            made.facts.append(Fact(fact_id, name, question.depth, question.target, ids))
            made.probes.append(Probe(fact_id, fact_id, question.depth, name, question.prompt, question.target, ids))
    return made, left_out


def meeting_schedule(
    records: Sequence[Record], meetings: Sequence[Meeting], *, start: int, copies: int = 1
) -> Schedule:
    """The visits in steps of the stream, each `copies` times; paraphrases in turn, the original first."""
    visits: list[tuple[int, str]] = []
    for number, (record, meeting) in enumerate(zip(records, meetings, strict=True)):
        for turn, step in enumerate(meeting.steps):
            shown = turn % (1 + len(record.paraphrases)) if meeting.reworded else 0
            visits += [(start + step, f"{record_name(number)}#{shown}")] * copies
    visits.sort(key=lambda visit: visit[0])
    return Schedule(np.array([step for step, _ in visits], dtype=np.int32), [passage for _, passage in visits])
