"""Every command that the README, docstrings, messages and YAML headers show is one that the command line takes."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from typer.testing import CliRunner

from headwater.attribution.settings import IndexSettings, QueriesSettings, TraceSettings
from headwater.configs import load_config
from headwater.launch.cli import front
from headwater.launch.cli.commands import app
from headwater.train.settings import PretrainSettings

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "kernels", "train", "attribution", "launch")
BEGINNINGS = ("headwater ", "torchrun ", "python -m headwater", "ray start --head; headwater ")
SETTINGS = {
    "headwater.train": PretrainSettings,
    "headwater.attribution.index": IndexSettings,
    "headwater.attribution.tracing": TraceSettings,
    "headwater.attribution.tracing.asking": QueriesSettings,
}
"""What modules that torchrun starts are configured with."""

CONFIGURATION = {
    "index": ["index/run", "model.run=runs/demo"],
    "queries": ["queries/default", "index=runs/a", "queries=q.jsonl", "out=q.safetensors"],
}
"""What stands for `CONFIG` in the prose about a command; a pretraining where nothing is said."""


def texts() -> Iterator[tuple[str, str]]:
    """(where, text) of everything that a user reads."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels/README.md", ROOT / "CHANGELOG.md"):
        yield path.name, path.read_text()
    for path in sorted((ROOT / "docs").rglob("*.md")):
        yield str(path.relative_to(ROOT)), path.read_text()
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        yield str(path.relative_to(ROOT)), "\n".join(re.findall(r"^\s*# ?(.*)$", path.read_text(), re.MULTILINE))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield str(path.relative_to(ROOT)), node.value


def shown(text: str) -> Iterator[str]:
    """The commands in a text: in backticks, also over a line's end, or alone on a line, a comment after it."""
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        command = " ".join(span.split())
        if command.startswith(BEGINNINGS):
            yield command
    for line in text.splitlines():
        if line.strip().startswith(BEGINNINGS):
            yield re.split(r"\s{2,}|\s#", line.strip())[0]


@functools.cache
def commands() -> list[tuple[str, str]]:
    found = {(where, command) for where, text in texts() for command in shown(text)}
    return sorted((where, each) for where, command in found for each in command.split("; ") if is_command(each))


def is_command(text: str) -> bool:
    """Whether it calls a command, and not only begins as one (`headwater mrr` is a column of a table)."""
    words = text.split()
    return "headwater." in text or (words[0] == "headwater" and words[1] in typer.main.get_command(app).commands)


class Accepted(Exception):
    """The command line has read a command and would begin."""


def begin(*_: Any, **__: Any) -> NoReturn:
    raise Accepted


@pytest.fixture
def only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read their settings and options, and do nothing."""

    class Module:
        def __init__(self, name: str) -> None:
            self._module = importlib.import_module(name)

        def __getattr__(self, name: str) -> Any:
            real = getattr(self._module, name)
            return real if isinstance(real, type) else functools.wraps(real)(begin)

    monkeypatch.setattr(front, "import_module", Module)
    monkeypatch.setattr("headwater.launch.plan.report.run_plan", begin)
    monkeypatch.setattr("headwater.launch.jobs.launch.launch_job", begin)
    monkeypatch.setattr("os.execv", begin)


def leads_to_a_command(words: list[str]) -> bool:
    """Whether these are names of commands alone, as in "run `headwater index` first"."""
    place: Any = typer.main.get_command(app)
    for word in words:
        place = getattr(place, "commands", {}).get(word)
        if place is None:
            return False
    return True


def check(command: str) -> None:
    """Raises if a command would not be taken."""
    command = command.partition(" > ")[0].replace("mine.yaml", "pretrain/demo")
    words = shlex.split(command.replace("...", "text").replace("bench NAME", "bench kernels"))
    if "CONFIG" in words:
        place = words.index("CONFIG")
        words[place : place + 1] = CONFIGURATION.get(words[1], ["pretrain/tiny"])
    if words[0] != "headwater":
        module = words[words.index("-m") + 1]
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"no module {module}"
        if module in SETTINGS:
            _, config, *overrides = words[words.index("-m") + 1 :]
            load_config(SETTINGS[module], config, overrides)
        else:
            assert spec.submodule_search_locations or "__main__" in Path(str(spec.origin)).read_text()
        return
    if leads_to_a_command(words[1:]):
        return
    result = CliRunner().invoke(app, words[1:])
    assert isinstance(result.exception, Accepted) or result.exit_code == 0, result.output or result.exception


@pytest.mark.parametrize(("where", "command"), commands(), ids=lambda value: value[:60])
def test_a_documented_command_is_taken(where: str, command: str, only_read: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "headwater trace trace/default run=runs/a",
        "headwater report runs/demo",
        "headwater launch pretrain/tiny --node 2",
        "headwater bench kernels --compiled sm_80",
        "headwater studies",
        "python -m headwater.attribution.captured RUN",
        "torchrun -m headwater.train pretrain/demo optimizer.final_lr=1",
    ],
)
def test_a_command_that_is_none_is_noticed(command: str, only_read: None, monkeypatch: pytest.MonkeyPatch):
    """The negative control."""
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, front.UserError)):
        check(command)


def test_commands_are_found_where_they_are_shown():
    found = commands()
    assert len({where for where, _ in found}) > 40
    assert ("README.md", "headwater launch CONFIG --nodes 8 --gpus-per-node 8 --slurm") in found
    assert ("docs/howto/machines.md", "headwater plan study/storage-1b gpus=8 gpu=h100") in found
    assert len({where for where, _ in found if where.startswith("docs/")}) > 12
    assert ("launch/bench/search.py", "headwater bench search --rows 20000,200000 --dims 1024") in found
