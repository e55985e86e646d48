"""The tiny directory of everything, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .whole import make_whole


@pytest.fixture(scope="session")
def whole(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A directory with one of everything (whole.py); who reads it must not change it."""
    return once("whole", make_whole)


@pytest.fixture
def here(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `whole`, as the working directory."""
    shutil.copytree(whole, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
