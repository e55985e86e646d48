"""What all commands share: how they fail, how their arguments become settings, and when heavy modules are imported."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headwater.configs.errors import UserError, refusals

OK, USER_ERROR, INTERRUPTED = 0, 2, 130


ORDER = ["demo", "corpus", "pretrain", "index", "queries", "trace", "select", "evaluate", "report", "explore"]
ORDER += ["study", "ablate", "plan", "launch", "export", "import", "send", "fetch", "bench", "doctor"]


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
            self._refuse_near(ctx, args[0])
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def _refuse_near(self, ctx: Any, word: str) -> None:
        """A word that is nearly a tool's name, and no configuration, was meant for the tool."""
        import difflib

        near = difflib.get_close_matches(word, self.commands, n=1, cutoff=0.75)
        if near and word.isalpha() and not Path(word).exists():
            raise UserError(
                f"there is no command headwater {ctx.info_name} {word}",
                expected=f"{', '.join(self.commands)}, or a configuration",
                fix=f"did you mean headwater {ctx.info_name} {near[0]}?",
            )


def say(label: str, message: str, style: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble((f"{label}: ", style), message))


OPTIONS: dict[str, Any] = {"no_args_is_help": True, "pretty_exceptions_enable": False, "add_completion": False}
"""Of every group of commands."""


def complete(incomplete: str) -> list[str]:
    """What a shell offers for a configuration: presets, and YAML files here."""
    from headwater.configs import preset_names

    files = [path.as_posix() for path in Path().glob(f"{incomplete}*") if path.is_dir() or path.suffix == ".yaml"]
    return sorted(each for each in [*preset_names(), *files] if each.startswith(incomplete))


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="A YAML file or preset, then settings that replace its own (KEY+=VALUE adds to a list).",
        autocompletion=complete,
    ),
]
Keys = Annotated[
    bool,
    typer.Option("--keys", help="Print every setting (or those below the PREFIXes given instead), and stop."),
]
Yaml = Annotated[bool, typer.Option("--yaml", help="Print the configuration, every key with a comment, and stop.")]


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


def read_settings(
    schema: str,
    arguments: list[str] | None,
    keys: bool = False,
    yaml: bool = False,
    *,
    preset: str | None = None,
    command: str = "",
    example: str = "",
) -> Any:
    """The settings that the arguments name, checked.

    Args:
        schema: `module:class` of the settings.
        keys, yaml: print them instead, and stop.
        preset: the configuration when the arguments name none.
        command: what is run, as a user writes it.
        example: arguments of a first try. A command that has neither preset nor arguments is refused, and shows these.
    """
    from headwater.configs import load_config

    settings_class = load(schema)
    if keys or yaml:
        print_settings(settings_class, arguments, keys=keys, preset=preset, command=command)
        raise typer.Exit(OK)
    if not arguments and preset is None and example:
        refuse_bare(command, example)
    config, overrides = split_arguments(arguments)
    return load_config(settings_class, preset if config is None else config, overrides)


def refuse_bare(command: str, example: str) -> None:
    """Says what a command wants that was given nothing.

    Raises:
        UserError: always.
    """
    from headwater.configs import preset_names

    rooms = {"corpus": "pretrain", "launch": "pretrain", "plan": "pretrain", "ablate": "ablation"}
    name = command.split()[1]
    presets = [each for each in preset_names() if each.startswith(f"{rooms.get(name, name)}/")]
    raise UserError(
        f"{command} wants a configuration",
        expected="a YAML file, one of the presets " + ", ".join(presets) + ", or settings as key=value",
        fix=f"for example `{command} {example}`; `--keys` lists the settings, `--yaml` prints a file to edit",
    )


def print_settings(schema: type, arguments: list[str] | None, *, keys: bool, preset: str | None, command: str) -> None:
    """Prints the settings that the arguments name: as YAML, or as a list of those below the words that name no file."""
    from headwater.configs import load_config
    from headwater.launch.cli.keys import print_keys, print_yaml

    words = [each for each in arguments or [] if "=" not in each or Path(each).is_file()]
    overrides = [each for each in arguments or [] if each not in words]
    config = None
    if words and (not keys or "/" in words[0] or Path(words[0]).suffix):
        config, *words = words
    given = config is not None or bool(overrides)
    settings = (
        load_config(schema, preset if config is None else config, overrides, cross_checks=False) if given else None
    )
    if keys:
        print_keys(schema, words, settings)
    else:
        print_yaml(schema, settings, command)
