"""What `--keys` and `--yaml` print: every setting of a command, as a list or as a file to edit."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from headwater.configs import MISSING, ConfigError, Problem, describe
from headwater.configs.settings import Row

LINE = 100
"""Columns that a description is wrapped at where nobody watches; names are never cut."""


def print_keys(schema: type, prefixes: Sequence[str] = (), settings: Any = None) -> None:
    """Prints settings: the key, its type and value, and below it what it is. Names are printed in full, however narrow.

    Args:
        prefixes: print those whose key is, or is below, one of these; all if there are none.
        settings: whose values are printed, in place of the defaults.

    Raises:
        ConfigError: no setting is at or below a prefix.
    """
    rows = list(describe(schema, default=settings))
    for line in key_lines(chosen(rows, prefixes)):
        print(line)


def chosen(rows: Sequence[Row], prefixes: Sequence[str]) -> list[Row]:
    """The rows at or below the prefixes, in their order."""
    problems = []
    for prefix in prefixes:
        if not any(_is_below(row.key, prefix) for row in rows):
            every = {row.key for row in rows} | {row.key.rpartition(".")[0] for row in rows} - {""}
            near = difflib.get_close_matches(prefix, sorted(every), n=1, cutoff=0.5)
            named = [row.key for row in rows if row.key.rpartition(".")[2] == prefix] or near
            tops = ", ".join(dict.fromkeys(row.key.partition(".")[0] for row in rows))
            fix = f"did you mean {named[0]}?" if named else None
            problems.append(Problem("--keys", prefix, f"the beginning of a key: {tops}", fix))
    if problems:
        raise ConfigError(problems, "--keys")
    return [row for row in rows if not prefixes or any(_is_below(row.key, prefix) for prefix in prefixes)]


def _is_below(key: str, prefix: str) -> bool:
    prefix = prefix.removesuffix("*").removesuffix(".")
    return key == prefix or key.startswith(f"{prefix}.")


def key_lines(rows: Sequence[Row]) -> list[str]:
    """Two lines a setting, `key (type) = value` and what it is."""
    import shutil
    import textwrap

    width = max(40, shutil.get_terminal_size((LINE, 24)).columns)
    lines = []
    for row in rows:
        told = ". ".join(filter(None, [row.help.rstrip("."), row.allowed]))
        lines.append(f"{row.key} ({row.type}) = {row.default}")
        lines += textwrap.wrap(told, width, initial_indent="    ", subsequent_indent="    ")
    return lines


def print_yaml(schema: type, settings: Any, command: str) -> None:
    """Prints a configuration to edit, with a comment above every key.

    Args:
        command: whose configuration it is, for the first line.
    """
    from headwater.configs.commented import commented_yaml

    print(f"# Every setting of `{command}`. What is left out has its default; {MISSING} must be given.")
    print(commented_yaml(schema() if settings is None else settings), end="")
