"""What `headwater trace --prompt --target` prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headwater.launch.cli.commands import app

from .whole import TRACE


def test_token_scores_are_printed_and_add_up(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    monkeypatch.setenv("COLUMNS", "4000")
    asked = [*TRACE[:3], "top_k=2", "bottom_k=1", "--prompt", "river stone", "--target", "cloud"]
    plain = CliRunner().invoke(app, asked).stdout
    shown = CliRunner().invoke(app, [*asked, "tokens=true"]).stdout
    lines = [line for line in shown.splitlines() if line.strip() and not line.startswith("score")]
    assert len(lines) == 6, "two lines a passage"
    assert len([line for line in plain.splitlines() if line.strip() and not line.startswith("score")]) == 3
    for passage, tokens in zip(lines[::2], lines[1::2], strict=True):
        score = float(passage.split()[0])
        parts = [float(part) for part in re.findall(r" ([+-]\d\.\d{4})(?=\s|$)", tokens)]
        assert len(parts) > 3
        assert sum(parts) == pytest.approx(score, abs=1e-4 * len(parts))
