"""What several folders' tests share: one tiny pretraining run, made once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

os.environ.setdefault("PYTHONWARNINGS", "ignore")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def fresh_numerics() -> None:
    """Every test begins with torch's own numerics: threads and matmul precision are the process's, not the test's."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_float32_matmul_precision("highest")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that no worker is left alone with one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pretrain(out: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """`torchrun -m headwater.train configs/pretrain/tiny.yaml out=... overrides`; the finished process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launcher, "-m", "headwater.train"] if ranks > 1 else [sys.executable, "-m", "headwater.train"]
    command += [str(ROOT / "configs/pretrain/tiny.yaml"), f"out={out}", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of twelve steps with checkpoints at 6 and 12. Read only: copy it to change it."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    done = pretrain(out, "train.steps=12", "checkpoint.every=6", "callbacks.probes.every=6")
    assert done.returncode == 0, done.stderr[-3000:]
    return out
