"""A configuration as a YAML file to edit: every key with what it is, its type and what is allowed, above it."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, cast

import yaml

from headwater.configs.loader import plain
from headwater.configs.settings import MISSING, Limits, field_types, limits_of, type_name

WIDTH = 100
"""Columns of a comment."""


def commented_yaml(settings: Any) -> str:
    """A settings object as YAML, each key below a comment; `load_config` of its class reads back an equal object.

    A key that has no value yet stands as `???`, for which a value must be given.
    """
    return "\n".join(_lines(settings, "")) + "\n"


def _lines(settings: Any, indent: str) -> Iterator[str]:
    hints = field_types(type(settings))
    for field in dataclasses.fields(settings):
        value, limits, hint = getattr(settings, field.name), limits_of(field), hints[field.name]
        if dataclasses.is_dataclass(value):
            yield from _comment(limits.help or (type(value).__doc__ or "").strip().split("\n")[0], indent)
            yield f"{indent}{field.name}:"
            yield from _lines(value, f"{indent}  ")
            continue
        kind = type_name(cast(type, hint))
        bounds = str(limits) if limits != Limits(limits.help) else ""
        allowed = f"[{kind}{'; ' + bounds if bounds else ''}]"
        yield from _comment(f"{limits.help} {allowed}", indent)
        yield from (indent + line for line in _entry(field.name, value))


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _entry(name: str, value: Any) -> list[str]:
    if isinstance(value, str) and value == MISSING:
        return [f"{name}: {MISSING}"]
    text = yaml.safe_dump({name: plain(value)}, sort_keys=False, allow_unicode=True, width=10**6)
    return typing.cast(list[str], text.rstrip("\n").split("\n"))
