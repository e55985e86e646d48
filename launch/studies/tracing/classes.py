"""What kind of passage is influential: sorted by rule, from records of what passages state, and from their words.

A passage is of the first of these kinds that fits. Where there are records of what it states they decide; of a passage
without any its words do, and of every passage where the records are known to tell only a part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headwater.attribution.evaluation.own_text import says

ENTAILING, SUBJECT, RELATION, VALUE, NAMES, NONE = CLASSES = (
    "entailing",
    "same subject, other relation",
    "same relation, other subject",
    "same value",
    "names alone",
    "none",
)
"""States subject and value; speaks of the subject; states the relation of somebody else; holds the value; holds a part
of the subject's name; nothing of these."""

SHORTEST = 4
"""Letters of the shortest word that counts as a part of a name that has no capital letters."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a passage states, or a question asks for."""

    subject: str
    relation: str
    value: str


class Sorter:
    """Sorts passages.

    Args:
        stated: what is known to be stated, by the passage's id.
        partial: passages may state more than that, as their words say.
    """

    def __init__(self, stated: Mapping[str, Sequence[Statement]], *, partial: bool = False) -> None:
        self.stated, self.partial = stated, partial

    def class_of(self, asked: Statement, passage_id: str, text: str) -> str:
        """The kind of a passage, for a question."""
        known = self.stated.get(passage_id, ())
        entails = asked in known
        speaks = any(each.subject == asked.subject for each in known)
        if self.partial or not known:
            said = says(text, asked.subject)
            entails = entails or (said and says(text, asked.value))
            speaks = speaks or said
        if entails:
            return ENTAILING
        if speaks:
            return SUBJECT
        if any(each.relation == asked.relation for each in known):
            return RELATION
        if any(each.value == asked.value for each in known) or says(text, asked.value):
            return VALUE
        return NAMES if any(says(text, part) for part in parts_of(asked.subject)) else NONE


def parts_of(name: str) -> list[str]:
    """The words of a name that tell it from others: those with a capital letter, or else those that are not short."""
    words = re.findall(r"\w+", name)
    capital = [word for word in words if word[0].isupper()]
    return capital or [word for word in words if len(word) >= SHORTEST]
