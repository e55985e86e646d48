"""An environment whose torchvision does not fit its torch: mended where that is so, and left alone where it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from headwater.train import torchvision_finder

FAULT = "RuntimeError: operator torchvision::nms does not exist"


@pytest.mark.parametrize(("printed", "mended"), [(FAULT, True), ("", False), ("No module named 'torchvision'", False)])
def test_only_an_environment_with_the_fault_gets_the_line(
    printed: str, mended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stderr=printed))
    place = tmp_path / torchvision_finder.PTH
    place.write_text("import gone\n")
    assert torchvision_finder.mend(str(tmp_path)) is mended
    assert place.exists() is mended
    if mended:
        assert place.read_text() == torchvision_finder.LINE


def test_a_script_imports_the_classes_of_transformers():
    """What the line runs, in a process in which Headwater declares nothing itself."""
    script = torchvision_finder.LINE + (
        "import sys\n"
        "assert 'torch' not in sys.modules, 'the line alone must cost nothing'\n"
        "from transformers import GPTNeoXForCausalLM\n"
        "assert not any(type(each).__name__ == 'TorchvisionFinder' for each in sys.meta_path)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
