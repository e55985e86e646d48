"""Where settings come from: YAML files with their bases, packaged presets, and `key=value` overrides."""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headwater.configs.errors import MissingError, Problem, UserError

PRESETS = Path(__file__).resolve().parent / "presets"


def preset_names() -> list[str]:
    """The packaged presets, as `pretrain/tiny`."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.glob("**/*.yaml"))


def find_config(path: str | os.PathLike[str], beside: Path | None = None) -> Path:
    """Finds a configuration: the packaged preset of that name (`pretrain/tiny`), or a file.

    A preset's name has no suffix, so neither is ever taken for the other: `pretrain/tiny.yaml` is a file, and one that
    is not there is refused.

    Args:
        beside: what a file is relative to; the working directory if not given. Its suffix `.yaml` may be left out.

    Raises:
        MissingError: with the preset that was perhaps meant.
    """
    presets = preset_names()
    if os.fspath(path) in presets:
        return PRESETS / f"{os.fspath(path)}.yaml"
    wanted = (beside or Path()) / Path(path).expanduser()
    for file in (wanted, wanted.parent / f"{wanted.name}.yaml"):
        if file.is_file():
            return file
    name = preset_name(path)
    near = difflib.get_close_matches(name, presets, n=1)
    fix = f"did you mean {near[0]}?" if near else "check the path; presets have no suffix"
    if name in presets:
        fix = f"write {name} for the packaged preset of that name"
    raise MissingError(
        f"there is no configuration file {path}",
        expected="a YAML file" if Path(path).suffix else f"a YAML file, or one of the presets {', '.join(presets)}",
        fix=fix,
    )


def preset_name(path: str | os.PathLike[str]) -> str:
    """The name of the preset that a path to its file names: `pretrain/tiny` of `configs/presets/pretrain/tiny.yaml`."""
    return re.sub(r"^(.*/)?configs/(presets/)?|\.ya?ml$", "", os.fspath(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads one YAML mapping; duplicate keys are errors."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file", got=str(error), expected="YAML in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read", got=error, fix="check the file's permissions") from None
    try:
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        duplicate = "duplicate key" in (error.problem or "")
        raise UserError(
            f"{place}: {error.problem if duplicate else 'this is not valid YAML'}",
            got=None if duplicate else error.problem,
            fix="keep one of the two lines" if duplicate else "mend the line (indentation, colons, quotes)",
        ) from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        # OmegaConf says that a file holds a number or the like with an OSError.
        raise UserError(f"{path} is not a configuration", got=str(error).split("\n")[0], fix="mend the value") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is not a configuration", got=type(content).__name__, expected="`key: value` lines")
    return cast(dict[str, Any], content)


def read_with_bases(path: Path, seen: Sequence[Path] = ()) -> dict[str, Any]:
    """Reads a YAML file over the files that its `base:` names (one, or a list; later ones win, itself last)."""
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(str(each) for each in [*seen, path])
        raise UserError(f"{path} is its own base", got=chain, fix="remove one `base:` line of the circle")
    content = read_yaml(path)
    bases = content.pop("base", None)
    if bases is None:
        return content
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base", got=bases, expected="the path of a YAML file, or a list of paths")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, read_with_bases(find_config(base, beside=path.parent), [*seen, path]))
    return merge(merged, content)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; anything else (lists too) is replaced."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


@dataclass(frozen=True, slots=True)
class Override:
    """One `key=value` of a command line.

    Attributes:
        key: dotted.
        raw: the value's text.
        value: the same as YAML.
        adds: whether it was `key+=value`, which adds to a list.
    """

    key: str
    raw: str
    value: Any
    adds: bool = False


def parse_override(text: str) -> Override | Problem:
    """Reads `key=value` or `key+=value`; or says what is wrong."""
    key, equals, raw = text.partition("=")
    adds = bool(equals) and key.endswith("+")
    key = key.removesuffix("+").strip() if adds else key.strip()
    form = "key=value, for example train.steps=20"
    if not equals:
        return Problem(text, "(no value)", form, "put an `=` between key and value")
    if not key or not all(key.split(".")) or any(character.isspace() for character in key):
        return Problem(text, raw, form, "write the key as names joined by dots, before the `=`")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={raw}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = getattr(error, "problem", None) or str(error).split("\n")[0]
        return Problem(key, raw, f"a YAML value ({reason})", "close its brackets and quotes")
    return Override(key, raw, cast(dict[str, Any], parsed)["value"] if raw.strip() else None, adds)


def put(tree: dict[str, Any], way: Sequence[str], value: Any, *, adds: bool = False) -> None:
    """Sets a key in nested mappings; mappings in the way that are none yet are made. Numbers index lists.

    Args:
        way: the names of the key.
        adds: the value, or each of its elements if it is a list, is added to the list that is there.
    """
    *above, last = way
    node: Any = tree
    for name in above:
        below = node[int(name)] if isinstance(node, list) and _is_index(node, name) else _child(node, name)
        if not isinstance(below, dict | list):
            below = {}
            _assign(node, name, below)
        node = below
    there = node.get(last) if isinstance(node, dict) else None
    if adds:
        value = [*(there or []), *(value if isinstance(value, list) else [value])]
    elif isinstance(there, dict) and isinstance(value, dict):
        value = merge(there, value)
    _assign(node, last, value)


def _child(node: Any, name: str) -> Any:
    return node.get(name) if isinstance(node, dict) else None


def _is_index(node: list[Any], name: str) -> bool:
    return name.isdecimal() and int(name) < len(node)


def _assign(node: Any, name: str, value: Any) -> None:
    if isinstance(node, list):
        if not _is_index(node, name):
            raise IndexError(name)
        node[int(name)] = value
    else:
        node[name] = value
