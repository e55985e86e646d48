"""Harm done to a file as the world does it: cut, flipped, doubled, emptied, swapped, of another version, or gone."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (None, [], {}, "", "odd", -1, 0, 1, 2.5, True, 10**30, [None], {"a": 1}, "../../x", "\ud800")
"""What another version, or another program, may have put where something else is expected."""

Harm = Callable[[random.Random, bytes, list[Path]], bytes | None]
"""New content of a file from the old; None takes it away."""


def cut(draw: random.Random, content: bytes, others: list[Path]) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def flip(draw: random.Random, content: bytes, others: list[Path]) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(draw.choice((1, 1, 3, 30))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def double(draw: random.Random, content: bytes, others: list[Path]) -> bytes:
    return content + content


def zero(draw: random.Random, content: bytes, others: list[Path]) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + bytes(len(content) - start)


def swap(draw: random.Random, content: bytes, others: list[Path]) -> bytes:
    return draw.choice(others).read_bytes()


def take_away(draw: random.Random, content: bytes, others: list[Path]) -> None:
    return None


def splice(draw: random.Random, content: bytes, others: list[Path]) -> bytes:
    low, high = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:low] + content[high:]


def another_version(draw: random.Random, content: bytes, others: list[Path]) -> bytes:
    """A value somewhere in JSON, or in a line of JSONL, is another, gone, or beside a new one."""
    lines = content.split(b"\n")
    whole = content.lstrip()[:1] in (b"{", b"[") and len(lines) > 1 and parsed(lines[0]) is None
    places = [0] if whole else [number for number, line in enumerate(lines) if line.strip()]
    place = draw.choice(places or [0])
    value = parsed(content if whole else lines[place])
    if value is None:
        return flip(draw, content, others)
    made = json.dumps(changed(draw, value)).encode()
    return made if whole else b"\n".join([*lines[:place], made, *lines[place + 1 :]])


def parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def changed(draw: random.Random, value: Any) -> Any:
    """The value with one place in it changed, at any depth."""
    value = copy.deepcopy(value)
    if draw.random() < 0.02 or not isinstance(value, dict | list) or not value:
        return draw.choice(ODD)
    node, key = value, None
    while True:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if draw.random() < 0.4 or not isinstance(node[key], dict | list) or not node[key]:
            break
        node = node[key]
    kind = draw.random()
    if kind < 0.25:
        del node[key]
    elif kind < 0.35 and isinstance(node, dict):
        node[f"{key}_new"] = node[key]
    elif kind < 0.45 and isinstance(node, list):
        node.append(node[key])
    elif kind < 0.55 and isinstance(node[key], int | float):
        node[key] = draw.choice((node[key] + 1, -node[key], node[key] * 1000, str(node[key]), float(node[key])))
    else:
        node[key] = draw.choice(ODD)
    return value


HARMS: dict[str, Harm] = {
    "cut": cut,
    "flipped": flip,
    "doubled": double,
    "zeroed": zero,
    "swapped": swap,
    "spliced": splice,
    "of another version": another_version,
    "gone": take_away,
}
