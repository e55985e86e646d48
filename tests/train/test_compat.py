"""Importing libraries without a GPU: what is put aside for it is put back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headwater.train.compat import functions_left_plain

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU nothing is put aside")


def double(value: int) -> int:
    return 2 * value


def test_functions_stay_as_they_are_written_and_only_there():
    compiling = torch.compile
    with functions_left_plain():
        assert torch.compile(double) is double
        assert torch.compile(dynamic=True)(double) is double
    assert torch.compile is compiling
    with pytest.raises(ImportError), functions_left_plain():
        raise ImportError
    assert torch.compile is compiling


@pytest.mark.slow
def test_megatron_is_imported_without_the_compiler():
    script = "import sys; import headwater.train.run, torch; print('torch._inductor.compile_fx' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
