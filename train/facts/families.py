"""All that a run plants: the families of facts that its settings name, one after the other."""

from __future__ import annotations

from headwater.train.facts.people import make_facts
from headwater.train.facts.real import real_facts
from headwater.train.facts.settings import FactsSettings
from headwater.train.facts.types import FactSet


def planted_facts(settings: FactsSettings, seed: int) -> FactSet:
    """Invented people, then countries, then elements.

    Raises:
        UserError: there are not so many countries as are asked for.
        MissingError: the package that states their capitals is not installed.
    """
    made = [make_facts(settings, seed), real_facts(settings, seed)]
    return FactSet(
        [passage for each in made for passage in each.passages],
        [fact for each in made for fact in each.facts],
        [probe for each in made for probe in each.probes],
    )
