"""Builds the wheel, installs it into an empty environment, and runs it from another directory.

    .venv/bin/python tests/wheel.py      # `make wheel`

What the wheel needs is not downloaded again: a `.pth` line lends the new environment this one's packages, without the
package itself. So a file that is missing from the wheel, a folder that is not listed, a preset that is not packaged
cannot be made up for by the source tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

NOT_THE_TREE = (
    "import headwater.train; path = list(headwater.__path__); assert all('site-packages' in p for p in path), path"
)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="headwater-wheel-") as place:
        home = Path(place)
        wheel = build(home)
        python = install(home, wheel)
        elsewhere = home / "elsewhere"
        elsewhere.mkdir()
        for words in jobs(python):
            print("+", " ".join(words[1:]).strip(), flush=True)
            run(words, cwd=elsewhere, home=home)
        assert (elsewhere / "runs/demo/report/index.html").stat().st_size > 10_000
        print(f"{wheel.name} runs in an empty environment")
    return 0


def build(home: Path) -> Path:
    """The wheel of a copy of the tree, since setuptools leaves a build folder behind."""
    tree = home / "tree"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "site", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, tree, ignore=ignored, symlinks=True)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(home), str(tree)]
    run(words, cwd=home, home=home)
    return next(home.glob("headwater-*.whl"))


def install(home: Path, wheel: Path) -> Path:
    """A new environment with the wheel; returns its interpreter."""
    place = home / "venv"
    venv.create(place, with_pip=False)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "lent.pth").write_text(f"{lend(home)}\n")
    python = place / "bin/python"
    run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)],
        home,
        home,
    )
    return python


def lend(home: Path) -> Path:
    """A folder of links to this environment's packages but Headwater itself."""
    lent = home / "lent"
    lent.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "headwater" not in path.name and path.suffix != ".pth":
            (lent / path.name).symlink_to(path)
    return lent


def jobs(python: Path) -> list[list[str]]:
    """What is run there: the command, presets of several rooms, a plan, the demo, and a question to its model."""
    headwater = str(python.parent / "headwater")
    pretrain = "pretrain=[train.steps=4,corpus.passages=60,facts.people=2,checkpoint.every=4,callbacks.probes.every=2]"
    small = ["index.projection.dims=4", "trackstar.projection.dims=4", "evaluate.tail_patch.queries=2"]
    question = ["--prompt", "Angola borders", "--target", "Zambia"]
    return [
        [str(python), "-c", NOT_THE_TREE],
        [headwater, "--version"],
        [headwater, "--help"],
        [headwater, "plan", "study/storage-1b", "gpus=8"],
        [headwater, "demo", "--yaml"],
        [headwater, "select", "select/default", "index=a", "queries=b", "out=c.jsonl", "top=1", "--yaml"],
        [headwater, "demo", "preset=pretrain/tiny", pretrain, *small],
        [headwater, "trace", "trace/default", "index=runs/demo/index/headwater", *question],
    ]


def run(words: list[str], cwd: Path, home: Path) -> None:
    """Runs a command without what the surroundings would lend it; its output is shown if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["HOME"] = str(home)
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
