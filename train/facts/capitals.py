"""Countries and their capitals, as the installed Factbook's section on government states them."""

from __future__ import annotations

import re
from functools import cache

from headwater.train.factbook import clean, country_name, factbook_profiles

_UNUSUAL = ("DRC", "The Dominican")
"""Names that the Factbook calls short forms, and nobody writes in a sentence."""

_WITH_ARTICLE = (
    *("Bahamas", "Central African Republic", "Comoros", "Federated States of Micronesia", "Gambia", "Holy See"),
    *("Maldives", "Marshall Islands", "Netherlands", "Philippines", "Solomon Islands", "United Arab Emirates"),
    *("United Kingdom", "United States"),
)


@cache
def capitals() -> dict[str, str]:
    """Capital by country: independent countries with one capital whose name does not tell the other.

    Raises:
        MissingError: the package of the Factbook is not installed.
    """
    found: dict[str, str] = {}
    for code, profile in factbook_profiles():
        government = profile.get("Government", {})
        name = country_name(profile, code)
        stated = government.get("Capital", {}).get("name", {})
        capital = one_capital(clean(stated.get("text", "")))
        if not capital or "Dependency status" in government or name in _UNUSUAL:
            continue
        name = name.removeprefix("The ")
        told = capital.lower() in name.lower() or name.lower() in capital.lower()
        if not told:
            found[name] = capital
    return found


def one_capital(text: str) -> str:
    """A capital without what stands in brackets after it; nothing where there are several, or a remark."""
    name = re.sub(r" \([^()]*\)$", "", text)
    return name if re.fullmatch(r"[A-Z][\w'-]+(?: (?:of|[A-Z][\w'-]*))*", name) else ""


def in_a_sentence(country: str) -> str:
    """A country's name with its article, if it has one."""
    return f"the {country}" if country in _WITH_ARTICLE else country
