"""Benchmarks: `headwater bench NAME --option value` calls `main` of the module of that name.

`main`'s parameters are its options: each has a default and a type (int, float, str, bool, or a sequence of one of the
first three); one without a default is given by its place. Its docstring is the help. It prints what it measures and
returns it.
"""

from __future__ import annotations

import argparse
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from headwater.configs.errors import UserError


def run_benchmark(name: str, main: Callable[..., Any], arguments: Sequence[str]) -> Any:
    """Calls a benchmark with the options given on the command line.

    Raises:
        UserError: an option is unknown or its value of the wrong type.
    """
    return main(**vars(_parser(name, main).parse_args(list(arguments))))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{self.prog}: {message}", fix=f"`{self.prog} --help` lists the options")


def _parser(name: str, main: Callable[..., Any]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"headwater bench {name}",
        description=inspect.getdoc(main),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = typing.get_type_hints(main)
    for parameter in inspect.signature(main).parameters.values():
        hint = _without_none(hints[parameter.name])
        if parameter.default is parameter.empty:
            parser.add_argument(parameter.name, type=hint)
            continue
        option = f"--{parameter.name.replace('_', '-')}"
        shown = f"default: {parameter.default}"
        if hint is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=parameter.default, help=shown)
        elif typing.get_origin(hint) is not None:
            kind = typing.get_args(hint)[0]
            parser.add_argument(option, type=kind, nargs="+", default=parameter.default, help=shown)
        else:
            parser.add_argument(option, type=hint, default=parameter.default, help=shown)
    return parser


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(hint) if each is not type(None))
    return hint
