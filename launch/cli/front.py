"""What all commands share: how they fail, how their arguments become settings, and when heavy modules are imported."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headwater.configs.errors import UserError, refusals

OK, USER_ERROR, INTERRUPTED = 0, 2, 130


ORDER = ["demo", "corpus", "pretrain", "index", "trace", "evaluate", "report", "study", "ablate"]
ORDER += ["plan", "launch", "export", "import", "bench"]


class Front(TyperGroup):
    """The outermost group: turns what a user can mend into a message and an exit status, without a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        try:
            with refusals():
                return super().invoke(ctx)
        except UserError as error:
            say("error", str(error), "bold red")
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            say("interrupted", "what was finished is kept; the same command goes on from there", "bold yellow")
            raise typer.Exit(INTERRUPTED) from None


class StageGroup(TyperGroup):
    """A stage with further tools: `headwater index CONFIG` means `headwater index run CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def say(label: str, message: str, style: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble((f"{label}: ", style), message))


OPTIONS: dict[str, Any] = {"no_args_is_help": True, "pretty_exceptions_enable": False, "add_completion": False}
"""Of every group of commands."""

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file or preset, then settings that replace its own."
    ),
]
Keys = Annotated[bool, typer.Option("--keys", help="Print every setting with its default, and stop.")]


def split_arguments(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """The configuration (the first argument, unless it is `key=value`) and the overrides."""
    arguments = arguments or []
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).is_file()):
        return arguments[0], arguments[1:]
    return None, arguments


def load(target: str) -> Any:
    """`package.module:name`, imported now."""
    module, name = target.split(":")
    return getattr(import_module(module), name)


def read_settings(schema: str, arguments: list[str] | None, keys: bool, preset: str | None = None) -> Any:
    """The settings that the arguments name; `preset` is the configuration when they name none."""
    from headwater.configs import load_config

    settings_class = load(schema)
    if keys:
        print_keys(settings_class)
        raise typer.Exit(OK)
    config, overrides = split_arguments(arguments)
    return load_config(settings_class, config or preset, overrides)


def print_keys(schema: type) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from headwater.configs import describe

    table = Table("setting", "type", "default", "what it is", box=None, header_style="bold")
    for row in describe(schema):
        table.add_row(
            Text(row.key),
            Text(row.type),
            Text(row.default),
            Text(". ".join(filter(None, [row.help.rstrip("."), row.allowed]))),
        )
    Console().print(table)
