"""What is planted and what is asked: passages, the facts that they state, and probes, as they lie in RUN/facts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from headwater.train.artifacts import json_line, write_bytes


@dataclass(frozen=True, slots=True)
class FactPassage:
    """A passage that goes into the stream, and the facts that it states."""

    id: str
    text: str
    fact_ids: list[str]
    kind: str

    @property
    def document(self) -> str:
        return self.id.rpartition("#")[0]


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of one person, and the passages that state it."""

    fact_id: str
    subject: str
    relation: str
    value: str
    gold: list[str]


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt that as a whole training never shows, and what should follow it. How much of its end training does show
    is its family's: whole statements of people, at most two words together of real facts.
    """

    example_id: str
    fact_id: str
    relation: str
    subject: str
    prompt: str
    target: str
    gold: list[str]


@dataclass(frozen=True, slots=True)
class FactSet:
    """Everything that is planted, and everything that is asked."""

    passages: list[FactPassage] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)


def write_facts(made: FactSet, directory: Path) -> None:
    """Writes passages.jsonl, facts.jsonl and probes.jsonl."""
    for name, records in (("passages", made.passages), ("facts", made.facts), ("probes", made.probes)):
        lines = "".join(json_line(asdict(record)) for record in records)
        write_bytes(directory / f"{name}.jsonl", lines.encode())
