"""The settings that a directory was made with: written down once, and compared key by key ever after."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater.configs import save_config
from headwater.configs.errors import MismatchError
from headwater.train.artifacts import fingerprint, read_json, require_match, write_json

MADE_WITH = "made_with"
NAMED = 6
"""Keys that a refusal names; of more it says how many."""
UNSET = "not set"
NOT_KEPT = ("out", "parallel")
"""Settings that a study may be gone on with others of, besides further seeds."""


def keep_settings(
    path: Path,
    settings: Mapping[str, Any],
    *,
    home: Path,
    mark: str,
    what: str,
    fix: str,
    note: Mapping[str, Any] | None = None,
    growing: Collection[str] = (),
) -> None:
    """Writes a directory's settings into a JSON file of it, or refuses a directory that was made with others.

    Args:
        settings: by name, sections as further mappings.
        home: a directory that may be moved with what it holds: paths in it are compared as seen from it.
        mark: their fingerprint. Files of earlier versions hold nothing else to compare.
        what: of the refusal: that the directory holds other settings.
        note: what else stands in the file.
        growing: lists to which more may be added, or of which only the first are taken; what is there is kept.

    Raises:
        MismatchError: naming the keys that differ; nothing is written.
    """
    settings = seen_from(home, json.loads(json.dumps(settings)))
    if path.exists():
        kept = read_json(path)
        if MADE_WITH in kept:
            before = dict(seen_from(home, kept[MADE_WITH]))
            if before.get("preset") == f"configs/{settings.get('preset')}.yaml":
                before["preset"] = settings["preset"]  # earlier versions wrote the path to a preset's file
            for name in growing:
                if _begins(before.get(name), settings.get(name)):
                    before[name] = settings[name]
            require_same(before, settings, what=what, fix=fix)
        else:
            require_match(what, kept["fingerprint"], mark, fix)
    write_json(path, {**(note or {}), "fingerprint": mark, MADE_WITH: settings})


def _begins(one: Any, other: Any) -> bool:
    """Whether one of two lists is the beginning of the other."""
    both = isinstance(one, list) and isinstance(other, list) and min(len(one), len(other)) > 0
    return both and all(a == b for a, b in zip(one, other, strict=False))


def keep_study(
    out: Path,
    settings: Any,
    given: Mapping[str, Any],
    *,
    mark: str = "",
    note: Mapping[str, Any] | None = None,
    config: str = "config.yaml",
) -> None:
    """Keeps what a study was made with in OUT/study.json, or refuses another; then writes its configuration.

    Seeds may be added to a study: what is there of the first ones is kept.

    Args:
        settings: the whole configuration.
        given: of it, what must stay the same.
        mark: as of `keep_settings`; by default the fingerprint of what is given.

    Raises:
        MismatchError: naming the keys that differ; nothing is written.
    """
    keep_settings(
        out / "study.json",
        given,
        home=out,
        mark=mark or fingerprint(given),
        what=f"{out} holds a study of other settings",
        fix="choose another out=, or remove that directory",
        note=note,
        growing=("seeds",),
    )
    save_config(settings, out / config)


def keep_whole_study(settings: Any) -> None:
    """`keep_study` in the study's own `out`, of all its settings but `NOT_KEPT`."""
    given = {name: value for name, value in asdict(settings).items() if name not in NOT_KEPT}
    keep_study(Path(settings.out), settings, given)


def seen_from(home: Path, value: Any) -> Any:
    """Settings in which the paths that begin with a directory begin with a dot in its place."""
    if isinstance(value, Mapping):
        return {key: seen_from(home, each) for key, each in value.items()}
    if isinstance(value, list):
        return [seen_from(home, each) for each in value]
    for start in (str(home), str(home.absolute())) if isinstance(value, str) else ():
        if value == start or value.startswith(f"{start}/"):
            return f".{value.removeprefix(start)}"
    return value


def require_same(kept: Mapping[str, Any], wanted: Mapping[str, Any], *, what: str, fix: str) -> None:
    """Compares settings key by key. What an earlier version did not know was off: a key that is not there is as one
    that says nothing.

    Raises:
        MismatchError: naming the keys that differ.
    """
    before, now = dict(_by_key(kept)), dict(_by_key(wanted))
    keys = {**now, **before}
    differing = [key for key in keys if before.get(key) != now.get(key) and not (key not in before and off(now[key]))]
    if differing:
        raise MismatchError(what, got=_listed(before, differing), expected=_listed(now, differing), fix=fix)


def off(value: str) -> bool:
    """Whether a setting, as JSON, says that there is nothing of a kind."""
    return value in ("0", '""', "[]", "{}", "false", "null")


def _by_key(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys with their values as JSON; numbers name the sections of a list."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _by_key(value, f"{above}{name}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            yield from _by_key({str(number): each for number, each in enumerate(value)}, f"{above}{name}.")
        else:
            yield f"{above}{name}", json.dumps(value)


def _listed(values: Mapping[str, str], keys: list[str]) -> str:
    named = ", ".join(f"{key} = {values.get(key, UNSET)}" for key in keys[:NAMED])
    more = len(keys) - NAMED
    return named + (f", and {more} more" if more > 0 else "")
