"""The pages as files: whole, and without another host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from headwater.attribution.explorer.export import export
from headwater.configs.errors import UserError


def test_every_link_leads_to_a_file(exported: Path) -> None:
    there = {path.name for path in exported.iterdir()}
    pages = list(exported.glob("*.html"))
    assert {"index.html", "compare.html", "watch.html", "sources.html", "explorer.js", "look.css"} <= there
    for path in pages:
        page = path.read_text(encoding="utf-8")
        for link in re.findall(r'(?:href|src|action)="([^"#]*)"', page):
            assert unquote(link) in there, f"{path.name} leads to {link}"
        assert "<form" not in page.replace('<form method="dialog">', "")
        assert "style=" not in page
    for path in (*exported.glob("*.css"), *exported.glob("*.js")):
        assert not re.search(r"https?://|url\(|@import", path.read_text(encoding="utf-8"))


def test_the_results_lie_beside_it_as_pairs_viewer_reads_them(exported: Path, explored: Path) -> None:
    lines = (exported / "results-0.jsonl").read_text().splitlines()
    records = (explored / "traces/headwater.jsonl").read_text().splitlines()
    assert len(lines) == len(records)
    needed = {"example_id", "inputs_plaintext", "targets_plaintext", "proponents", "proponent_scores"}
    assert all(needed <= json.loads(line).keys() for line in lines)


def test_hostile_data_stay_data(hostile: Path, tmp_path: Path) -> None:
    export([hostile], tmp_path / "site", say=lambda text: None)
    names = {path.name for path in (tmp_path / "site").rglob("*")}
    assert all(
        re.fullmatch(
            r"[a-z-]+(-[0-9a-f]{16})?\.(html|json|css|js|svg)|[a-z-]+(-[0-9a-f]{16})?\.csv|results-0\.jsonl", name
        )
        for name in names
    )
    assert not list(tmp_path.glob("*.part"))


def test_nothing_is_written_over(explored: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="is there already"):
        export([explored], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_too_many_pages_are_said(explored: Path, tmp_path: Path) -> None:
    assert export([explored], tmp_path / "site", say=lambda text: None, most=5) == 5
    assert "no more" in (tmp_path / "site/left-out.html").read_text()
