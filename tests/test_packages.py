"""What is installed is what stands in the tree."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_folder_of_code_is_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    rooms = ("configs", "kernels", "train", "attribution", "launch")
    folders = {path.parent.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert sorted(f"headwater.{'.'.join(folder.parts)}" for folder in folders) == sorted(set(listed) - {"headwater"})
