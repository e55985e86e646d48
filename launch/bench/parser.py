"""The options of the benchmarks: `headwater bench NAME`, with options, calls `main` of the module of that name.

`main`'s parameters are its options: each has a default and a type (int, float, str, bool, or a sequence of one of the
first three); one without a default is given by its place. Its docstring is the help. It prints what it measures and
returns it as JSON holds it; `--json FILE`, which every benchmark has, writes that.
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
    """Calls a benchmark with the options given on the command line; returns what it measured.

    Raises:
        UserError: an option is unknown or its value of the wrong type.
    """
    options = vars(_parser(name, main).parse_args(list(arguments)))
    target = options.pop("json")
    measured = main(**options)
    if target is not None:
        from headwater.train.artifacts import write_json

        write_json(target, measured)
    return measured


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{self.prog}: {message}", fix=f"`{self.prog} --help` lists the options")


class _Several(argparse.Action):
    """A list that is given with commas, with spaces, or with both: `--rows 20,30 40`."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, [value for each in values for value in each])


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
            kind = _listed(typing.get_args(hint)[0])
            parser.add_argument(option, type=kind, nargs="+", action=_Several, default=parameter.default, help=shown)
        else:
            parser.add_argument(option, type=hint, default=parameter.default, help=shown)
    parser.add_argument("--json", metavar="FILE", help="write what is measured there as well")
    return parser


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(hint) if each is not type(None))
    return hint


def _listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads values with commas between them."""

    def read(text: str) -> list[Any]:
        return [kind(each) for each in text.removesuffix(",").split(",")]

    read.__name__ = kind.__name__  # argparse says it of a value that it cannot read
    return read
