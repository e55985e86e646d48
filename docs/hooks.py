"""Pages that are made from the code: the configuration reference, the commands, and READMEs that lie in folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from headwater.configs import describe
from headwater.configs.settings import Row

ROOT = Path(__file__).resolve().parents[1]

SCHEMAS = {
    "corpus, pretrain, launch": "headwater.train.settings:PretrainSettings",
    "index": "headwater.attribution.settings:IndexSettings",
    "queries": "headwater.attribution.settings:QueriesSettings",
    "trace": "headwater.attribution.settings:TraceSettings",
    "select": "headwater.attribution.selection.settings:SelectSettings",
    "evaluate": "headwater.attribution.settings:EvaluateSettings",
    "report": "headwater.attribution.report.settings:ReportSettings",
    "demo": "headwater.launch.demo:DemoSettings",
    "plan": "headwater.launch.machines.layouts:PlanSettings",
    "ablate": "headwater.launch.ablate.settings:AblateSettings",
    "study acquisition": "headwater.launch.studies.acquisition.settings:AcquisitionSettings",
    "study storage": "headwater.launch.studies.storage.settings:StorageSettings",
    "study overlearnt": "headwater.launch.studies.overlearnt.settings:OverlearntSettings",
    "study lds": "headwater.launch.studies.lds.settings:LdsSettings",
    "study exposures": "headwater.launch.studies.exposures.settings:ExposuresSettings",
    "study pretrained": "headwater.launch.studies.pretrained.settings:PretrainedSettings",
    "study selection": "headwater.launch.studies.selection.settings:SelectionSettings",
    "study tracing": "headwater.launch.studies.tracing.settings:TracingSettings",
}
"""The settings of each command."""

COPIED = {"reference/families.md": "attribution/models/README.md", "reference/kernels.md": "kernels/README.md"}
"""Pages that are a folder's README."""

PICTURES = {
    "example.png": "attribution/report/example.png",
    "ask.png": "attribution/explorer/ask.png",
    "read.png": "attribution/explorer/read.png",
}


def load(target: str) -> Any:
    module, name = target.split(":")
    return getattr(import_module(module), name)


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to those in docs/."""
    from mkdocs.structure.files import File

    made = {
        "reference/configuration.md": configuration(),
        "reference/commands.md": commands(),
        **{page: (ROOT / source).read_text() for page, source in COPIED.items()},
    }
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for page, picture in PICTURES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / picture)))
    return files


def configuration() -> str:
    """Every key of every command's configuration, with type, default, what is allowed, and its line of help."""
    lines = [
        "# Configuration",
        "",
        "Every setting of every command, made from the code. On the command line `headwater pretrain --keys optimizer` "
        "lists those below a key, and `headwater pretrain pretrain/tiny --yaml` prints a file to edit. A file may name "
        "others that it stands on, `base: other.yaml`; `key=value` replaces, `key+=value` adds to a list. All mistakes "
        "are reported together.",
        "",
        "## Presets",
        "",
        "A preset is named without suffix; a name that ends with `.yaml` is a file.",
        "",
        "| preset | what it is |",
        "|---|---|",
        *presets(),
        "",
    ]
    for command, schema in SCHEMAS.items():
        settings = load(schema)
        lines += [f"## {command}", "", (settings.__doc__ or "").strip().split("\n")[0], ""]
        lines += ["| key | type | default | what it is |", "|---|---|---|---|", *map(row_line, describe(settings)), ""]
    return "\n".join(lines)


def row_line(row: Row) -> str:
    told = ". ".join(filter(None, [row.help.rstrip("."), row.allowed]))
    default = row.default if len(row.default) < 80 else row.default[:76] + " ..."
    return f"| `{row.key}` | {cell(row.type)} | `{cell(default)}` | {cell(told)} |"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;").replace("\n", " ")


def presets() -> Iterator[str]:
    """A line for each preset: its name, and the first sentence of its first comment."""
    for path in sorted((ROOT / "configs/presets").rglob("*.yaml")):
        comment = re.match(r"(?:# .*\n)+", path.read_text())
        text = " ".join(line[2:] for line in comment.group(0).splitlines()) if comment else ""
        name = path.relative_to(ROOT / "configs/presets").with_suffix("").as_posix()
        yield f"| `{name}` | {cell(re.split(r'(?<=[.:]) ', text)[0].rstrip(':'))} |"


def commands() -> str:
    """Every command with its options, as `--help` says."""
    import typer

    from headwater.launch.cli.commands import app

    root = typer.main.get_command(app)
    lines = ["# Commands", "", "What `headwater COMMAND --help` says of each.", ""]
    for words, command in walk(root, ["headwater"]):
        lines += [f"## {' '.join(words[1:])}", "", (command.help or "").strip(), ""]
        rows = [parameter for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| option | what it is |", "|---|---|", *map(option_line, rows), ""]
    return "\n".join(lines)


def walk(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Every command below one, with the words that call it."""
    for name in sorted(getattr(command, "commands", {})):
        inner = command.commands[name]
        yield [*words, name], inner
        yield from walk(inner, [*words, name])


def option_line(parameter: Any) -> str:
    names = ", ".join(parameter.opts) if parameter.opts[0].startswith("-") else parameter.metavar or parameter.name
    default = parameter.default
    shown = f" (default {default})" if default not in (None, False, [], ()) and not callable(default) else ""
    return f"| `{cell(names)}` | {cell(getattr(parameter, 'help', '') or '')}{shown} |".replace("\\[", "[")


def on_post_page(output: str, page: Any, config: Any) -> str:
    """No page asks another host: the search's stand-in for pages opened from disk is left out."""
    return re.sub(r'<script src="https://[^"]*"></script>', "", output)
