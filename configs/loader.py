"""Loads, checks and saves configurations: `load_config(Schema, "pretrain/tiny", ["train.steps=20"])` gives a Schema.

A schema is a settings dataclass (see `settings.py`). The tree of values, from the file, its bases and the overrides, is
laid into OmegaConf's structured config of the schema, one key at a time, so that every problem is found and all are
reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import os
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headwater.configs.errors import ConfigError, Problem
from headwater.configs.settings import MISSING, Limits, field_types, limits_of, renamed_keys, type_name, without_none
from headwater.configs.sources import find_config, merge, parse_override, put, read_with_bases

S = TypeVar("S")


class _NotGiven:
    def __repr__(self) -> str:
        return "(not given)"


def load_config(
    schema: type[S],
    path: str | os.PathLike[str] | None = None,
    overrides: Iterable[str] = (),
    *,
    cross_checks: bool = True,
) -> S:
    """Builds a checked settings object.

    Args:
        schema: the settings dataclass.
        path: a YAML file or the name of a packaged preset; None for the defaults alone.
        overrides: `key=value` strings, applied last, in order; values are YAML (`[1, 2]`, `null`, `1e-3`).
            `key+=value` adds to a list.
        cross_checks: False leaves out the `problems()` of the sections, for a caller with checks of its own.

    Raises:
        ConfigError: with every problem: unknown keys, wrong types, values not allowed, missing ones, cross-field ones.
        MissingError: no such file or preset.
        UserError: the file is not readable YAML, or has a key twice.
    """
    tree = read_with_bases(find_config(path)) if path is not None else {}
    problems: list[Problem] = []
    tree = _apply_overrides(schema, tree, overrides, problems)
    loader = _Loader(schema, cross_checks)
    loader.lay(loader.config, tree, schema, "")
    settings = loader.finish()
    problems += loader.problems
    if problems:
        raise ConfigError(problems, f"configuration {path}" if path is not None else "the configuration")
    return settings


def save_config(settings: Any, path: str | os.PathLike[str]) -> None:
    """Writes a settings object as YAML, atomically; `load_config` of its class reads back an equal object."""
    path = Path(path)
    text = to_yaml(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def to_yaml(settings: Any) -> str:
    """A settings object as YAML text, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(settings)))


def plain(value: Any) -> Any:
    """A settings object, or a value in one, as mappings, lists, texts and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        # A literal `${` must not be read back as an interpolation; backslashes before it are doubled first.
        return re.sub(r"(\\*)\$\{", lambda match: match.group(1) * 2 + "\\${", value)
    return value


def _apply_overrides(
    schema: type, tree: dict[str, Any], overrides: Iterable[str], problems: list[Problem]
) -> dict[str, Any]:
    tree = merge({}, tree)
    for text in overrides:
        parsed = parse_override(text)
        if isinstance(parsed, Problem):
            problems.append(parsed)
            continue
        way, hint = _way_to(schema, parsed.key)
        value = parsed.value
        if parsed.adds and typing.get_origin(without_none(hint)) is not list:
            problems.append(Problem(f"{parsed.key}+", parsed.raw, "the key of a list", f"write {parsed.key}=..."))
            continue
        if without_none(_element_of(hint) if parsed.adds else hint) in (str, Path) and value is not None:
            # A name that looks like a number, a date or a mapping is still a name.
            value = value if isinstance(value, str) or (parsed.adds and isinstance(value, list)) else parsed.raw
        try:
            if parsed.adds and _at(tree, way) is None:
                put(tree, way, plain(_at(schema(), way)))  # what is added to a default keeps it
            put(tree, way, value, adds=parsed.adds)
        except IndexError:
            expected = "the place of an element that the list has"
            problems.append(Problem(parsed.key, value, expected, "give the whole list"))
    return tree


def _way_to(schema: Any, key: str) -> tuple[list[str], Any]:
    """The names of a dotted key, and its type, or None if the schema has no such key.

    What follows the key of a mapping is one name: `grid.train.steps` is the key `train.steps` of `grid`.
    """
    names = key.split(".")
    way: list[str] = []
    for place, name in enumerate(names):
        inner = without_none(schema)
        if typing.get_origin(inner) is dict and not _holds_sections(inner):
            return [*way, ".".join(names[place:])], typing.get_args(inner)[1]
        if _holds_sections(inner):
            schema = typing.get_args(inner)[-1]
        elif dataclasses.is_dataclass(inner):
            schema = field_types(cast(type, inner)).get(name)
        else:
            return [*way, *names[place:]], None
        way.append(name)
    return way, schema


def _at(tree: Any, way: Iterable[str]) -> Any:
    """What stands at a key in nested mappings or dataclasses; None if nothing does."""
    for name in way:
        tree = tree.get(name) if isinstance(tree, dict) else getattr(tree, name, None)
    return tree


def _element_of(hint: Any) -> Any:
    return (typing.get_args(without_none(hint)) or (None,))[-1]


class _Loader:
    """One load: the structured config being filled and the problems found so far."""

    def __init__(self, schema: type, cross_checks: bool) -> None:
        self.schema, self.cross_checks = schema, cross_checks
        self.config: DictConfig = OmegaConf.structured(schema)
        self.problems: list[Problem] = []
        self.broken: set[str] = set()
        """Keys whose values are unusable; the checks of the sections that hold them are left out."""

    def lay(self, node: DictConfig, tree: Any, schema: type, prefix: str) -> None:
        """Lays a tree of plain values into a structured node, key by key."""
        hints = field_types(schema)
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if name not in hints:
                self.problems.append(self._unknown(key, value, schema, prefix))
                continue
            hint = hints[name]
            inner = without_none(hint)
            if dataclasses.is_dataclass(inner) and isinstance(value, dict):
                if OmegaConf.is_missing(node, name) or node[name] is None:
                    node[name] = OmegaConf.structured(inner)
                self.lay(node[name], value, cast(type, inner), f"{key}.")
            elif _holds_sections(inner) and isinstance(value, list | dict):
                self._lay_sections(node, name, value, inner, key)
            else:
                self._lay_value(node, name, value, hint, key)

    def _lay_sections(self, node: DictConfig, name: str, value: Any, hint: Any, key: str) -> None:
        """Lays a list or mapping of sections."""
        element = typing.get_args(hint)[-1]
        container, given = typing.get_origin(hint), list if isinstance(value, list) else dict
        if container is not given:
            self._wrong(key, value, type_name(hint))
            return
        node[name] = [] if given is list else {}
        for place, each in enumerate(value) if given is list else value.items():
            if not isinstance(each, dict):
                self._wrong(f"{key}.{place}", each, type_name(element))
                continue
            section = OmegaConf.structured(element)
            if given is list:
                node[name].append(section)
                section = node[name][-1]
            else:
                node[name][place] = section
                section = node[name][place]
            self.lay(section, each, element, f"{key}.{place}.")

    def _lay_value(self, node: DictConfig, name: str, value: Any, hint: Any, key: str) -> None:
        if isinstance(value, bool) and without_none(hint) in (int, float):
            self._wrong(key, value, type_name(hint))
            return
        if isinstance(value, int) and float in typing.get_args(hint) and int not in typing.get_args(hint):
            value = float(value)  # of `float | str`, as YAML writes whole numbers
        try:
            OmegaConf.update(node, name, value)
        except OmegaConfBaseException:
            self._wrong(key, value, type_name(hint))

    def _wrong(self, key: str, value: Any, expected: str) -> None:
        fix = None
        if isinstance(value, float) and value.is_integer() and expected.startswith("int"):
            fix = f"write {int(value)}"
        elif value is None:
            fix = "give a value, or leave the key out to have the default"
        elif isinstance(value, str | int | float) and expected.startswith("list"):
            fix = f"write {key}=[{value}]"
        elif isinstance(value, dict) and expected.startswith("list"):
            fix = f"give the whole list, {key}=[...]"
        self.problems.append(Problem(key, value, expected, fix))
        self.broken.add(key)

    def _unknown(self, key: str, value: Any, schema: type, prefix: str) -> Problem:
        name, siblings = key.rpartition(".")[2], list(field_types(schema))
        if name in renamed_keys(schema):
            now = prefix + renamed_keys(schema)[name]
            return Problem(key, value, f"{now}, as this key is called now", f"write {now}")
        every = list(_all_keys(self.schema, ""))
        near = [prefix + each for each in difflib.get_close_matches(name, siblings, n=1)]
        near = near or [each for each in every if each.rpartition(".")[2] == name]
        near = near or difflib.get_close_matches(key, every, n=1)
        where = f"of section {prefix.rstrip('.')}" if prefix else "of this configuration"
        return Problem(
            key, value, f"a key {where}: {', '.join(siblings)}", (near and f"did you mean {near[0]}?") or None
        )

    def finish(self) -> Any:
        """Checks the filled config and returns the settings object, or None if there are problems."""
        self._check_values(self.config, self.schema, "")
        if self.broken:
            # Sections that are whole are still checked, so that all problems come together.
            for key, schema, node in _sections(self.config, self.schema, ""):
                if not any(each.startswith(key) for each in self.broken):
                    self._cross_check(OmegaConf.to_object(node), schema, key)
            return None
        settings = OmegaConf.to_object(self.config)
        self._cross_check_all(settings, "")
        return settings

    def _check_values(self, node: DictConfig, schema: type, prefix: str) -> None:
        hints = field_types(schema)
        for field in dataclasses.fields(schema):
            key, hint = f"{prefix}{field.name}", hints[field.name]
            if key in self.broken:
                continue
            if OmegaConf.is_missing(node, field.name):
                fix = f"add `{key}: ...` to the file, or {key}=... to the command"
                self.problems.append(Problem(key, _NotGiven(), type_name(hint), fix))
                self.broken.add(key)
                continue
            try:
                value = node[field.name]
            except OmegaConfBaseException as error:
                raw = OmegaConf.to_container(node, resolve=False)[field.name]  # type: ignore[index,call-overload]
                self.problems.append(Problem(key, raw, type_name(hint), str(error).split("\n")[0]))
                self.broken.add(key)
                continue
            inner = without_none(hint)
            if isinstance(value, DictConfig) and dataclasses.is_dataclass(inner):
                self._check_values(value, cast(type, inner), f"{key}.")
            elif _holds_sections(inner) and value is not None:
                for place, each in _elements(value):
                    self._check_values(each, typing.get_args(inner)[-1], f"{key}.{place}.")
            else:
                self._check_limits(key, value, limits_of(field), hint)

    def _check_limits(self, key: str, value: Any, limits: Limits, hint: Any) -> None:
        places = _elements(value) if isinstance(value, ListConfig | DictConfig) else [(None, value)]
        for place, each in places:
            if isinstance(each, str) and each == MISSING:
                each = None
            if isinstance(each, ListConfig | DictConfig) or limits.allows(each):
                continue
            fix = None
            if limits.choices is not None:
                near = difflib.get_close_matches(str(each), [str(choice) for choice in limits.choices], n=1)
                fix = f"did you mean {near[0]}?" if near else None
            allowed = type_name(hint) + " (not nan)" if limits == Limits(limits.help) else str(limits)
            self.problems.append(Problem(key if place is None else f"{key}.{place}", each, allowed, fix))
            self.broken.add(key)

    def _cross_check_all(self, settings: Any, prefix: str) -> None:
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            for place, each in _elements(value) if isinstance(value, list | dict) else [("", value)]:
                if dataclasses.is_dataclass(each):
                    inner = f"{prefix}{field.name}." if place == "" else f"{prefix}{field.name}.{place}."
                    self._cross_check_all(each, inner)
        self._cross_check(settings, type(settings), prefix)

    def _cross_check(self, settings: Any, schema: type, prefix: str) -> None:
        if self.cross_checks and hasattr(schema, "problems"):
            own = {field.name for field in dataclasses.fields(schema)}
            for problem in settings.problems():
                relative = problem.key.split(".")[0] in own
                key = f"{prefix}{problem.key}" if relative else problem.key
                self.problems.append(dataclasses.replace(problem, key=key))


def _holds_sections(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) in (list, dict) and dataclasses.is_dataclass(arguments[-1])


def _elements(value: Any) -> Iterable[tuple[Any, Any]]:
    return enumerate(value) if isinstance(value, list | ListConfig) else value.items()


def _all_keys(schema: type, prefix: str) -> Iterator[str]:
    for name, hint in field_types(schema).items():
        inner = without_none(hint)
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(inner):
            yield from _all_keys(cast(type, inner), f"{prefix}{name}.")


def _sections(node: DictConfig, schema: type, prefix: str) -> Iterator[tuple[str, type, DictConfig]]:
    """Every section of a config, innermost first, with the prefix of its keys; the root is left out."""
    for name, hint in field_types(schema).items():
        inner = without_none(hint)
        if dataclasses.is_dataclass(inner) and node._get_node(name) is not None:
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                yield from _sections(child, cast(type, inner), f"{prefix}{name}.")
                yield f"{prefix}{name}.", cast(type, inner), child
