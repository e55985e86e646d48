"""The documentation: the README's figures are the study's, links lead somewhere, keys are there, the notebook runs."""

from __future__ import annotations

import json
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_fits_and_its_figures_are_those_of_the_study():
    readme, study = (ROOT / "README.md").read_text(), (ROOT / "docs/studies/overlearnt.md").read_text()
    assert readme.count("\n") <= 150
    table = [line for line in readme.splitlines() if line.startswith("|") and "[." in line]
    assert len(table) == 5
    for figure in re.findall(r"[\d.]+ \[[\d.]+, [\d.]+\]", " ".join(table)):
        assert figure in study, figure


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    made = {"reference/commands.md", "reference/configuration.md", "reference/families.md", "reference/kernels.md"}
    made |= set(runpy.run_path(str(ROOT / "docs/hooks.py"))["PICTURES"])
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if target.startswith("https://"):
            continue
        place = (page.parent / target).resolve()
        assert place.exists() or str(place.relative_to(ROOT / "docs")) in made, target


def test_tests_that_pages_name_are_there():
    """A test named after `::` alone is of the file before it."""
    named = re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", (ROOT / "docs/howto/survive.md").read_text())
    assert len(named) >= 9
    file = ""
    for given, name in named:
        file = given or file
        assert f"\ndef {name}(" in (ROOT / file).read_text(), (file, name)


def test_every_setting_and_command_is_in_the_reference():
    hooks = runpy.run_path(str(ROOT / "docs/hooks.py"))
    keys = hooks["configuration"]()
    for key in ("callbacks.capture.mode", "projection.dims", "leave_out.facts", "grid", "custom.memory"):
        assert f"| `{key}` |" in keys, key
    assert "Peak learning rate" in keys
    assert all(line.count(" | ") >= 1 for line in keys.splitlines() if line.startswith("| `"))
    commands = hooks["commands"]()
    for name in ("pretrain", "index verify", "study lds", "study selection", "bench kernels", "doctor"):
        assert f"\n## {name}\n" in commands, name


def test_names_of_the_reference_are_there():
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)
    assert len(named) > 10
    for name in named:
        pkgutil.resolve_name(name)
    with pytest.raises(AttributeError):
        pkgutil.resolve_name("headwater.train.callbacks.ledger.read_nothing")


def test_files_of_an_index_are_in_the_reference():
    from headwater.attribution.index import precision, store
    from headwater.attribution.index.writer import WRITTEN

    page = (ROOT / "docs/reference/files.md").read_text()
    listed = re.search(r"## An index\n\n```\n(.*?)```", page, re.DOTALL)
    assert listed
    names = {line.split()[0] for line in listed[1].splitlines() if line.strip()}
    assert {*WRITTEN, precision.FILE, store.REMOTE} <= names


def test_the_notebook_runs(tiny_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Each cell in order, on a tiny run and an index of it."""
    from headwater.attribution.index.build import build_index
    from headwater.attribution.settings import IndexSettings, ProjectionSettings, TracedModelSettings

    model = TracedModelSettings(run=str(tiny_run))
    index = tmp_path / "index"
    build_index(IndexSettings(out=str(index), model=model, projection=ProjectionSettings(dims=5)))
    notebook = json.loads((ROOT / "docs/howto/python.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in [*cells[:1], f"RUN, INDEX = {str(tiny_run)!r}, {str(index)!r}", *cells[1:]]:
        exec(cell, names)
    assert len(names["records"]) == 4  # type: ignore[arg-type]
    assert names["scores_QN"].shape[0] == 4  # type: ignore[attr-defined]
