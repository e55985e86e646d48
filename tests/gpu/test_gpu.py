"""What must hold on a GPU, on the first one that is there, in ten minutes.

    make test-gpu          # or: python -m pytest -m gpu -rA

Figures (errors, distances, the benchmarks' own) are printed and kept as JSON in the directory that is named at the end.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from headwater.train.callbacks.metrics import read_metrics
from headwater.train.losses import LOSSES

from ..conftest import pretrain
from ..train.test_losses import check
from . import checks

GPUS = torch.cuda.device_count()
needs_two = pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs, found {GPUS}")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use: none was found"),
]
TYPES = list(checks.LIMITS)
SMALL = ("train.steps=8", "checkpoint.every=8", "callbacks.probes.every=0", "callbacks.metrics.tensorboard=false")


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What was measured, written when all is done."""
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    yield found
    path = tmp_path_factory.getbasetemp() / "gpu.json"
    path.write_text(json.dumps(found, indent=1))
    print(f"\nfigures: {path}\n{json.dumps(found, indent=1)}")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("kind", "size", "dtype"), itertools.product(checks.KINDS, checks.SIZES, TYPES), ids=lambda value: str(value)
)
def test_rows_equal_float64(device: torch.device, figures: dict[str, Any], kind: str, size: Any, dtype: Any) -> None:
    figures[f"error {kind} {size} {dtype}"] = checks.rows_equal_float64(device, kind, size, dtype)


def test_a_wrong_row_is_noticed(device: torch.device) -> None:
    checks.a_wrong_row_is_noticed(device)


@pytest.mark.parametrize(("kind", "dtype"), itertools.product(checks.KINDS, TYPES), ids=lambda value: str(value))
def test_alone_equals_packed(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    checks.alone_equals_packed(device, kind, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_descriptors_equal_pointers(device: torch.device, dtype: torch.dtype) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("only from Hopper on there are tensor descriptors in hardware")
    checks.descriptors_equal_pointers(device, dtype)


@pytest.mark.parametrize("kind", checks.KINDS)
def test_a_segment_for_each_token(device: torch.device, kind: str) -> None:
    checks.a_segment_for_each_token(device, kind, small=False)


def test_rows_in_another_thread(device: torch.device) -> None:
    checks.rows_in_another_thread(device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_varlen_attention(device: torch.device, figures: dict[str, Any], dtype: torch.dtype) -> None:
    figures[f"varlen against padded {dtype}"] = checks.varlen_equals_padded(device, dtype)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss(device: torch.device, kind: str) -> None:
    checks.loss_equals_float64(device, kind, check)


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_the_fused_norm(device: torch.device, figures: dict[str, Any], normalization: str) -> None:
    if importlib.util.find_spec("transformer_engine") is None:
        pytest.skip("needs transformer_engine: pip install 'headwater[gpu]'")
    from transformer_engine.pytorch import LayerNormLinear

    found = checks.fused_norm_is_the_layers(device, LayerNormLinear, normalization)
    figures[f"fused {normalization}"] = found


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained where no GPU is seen."""
    out = tmp_path_factory.mktemp("cpu") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        done = pretrain(out, *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_of_a_model(
    device: torch.device, figures: dict[str, Any], on_cpu: Path, tmp_path: Path, precision: str
) -> None:
    code = "import sys, torch; from pathlib import Path; from tests.gpu.checks import model_rows; "
    code += "torch.save(model_rows(Path(sys.argv[1]), 'fp32'), sys.argv[2])"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        root = Path(__file__).resolve().parents[2]
        subprocess.run([sys.executable, "-c", code, str(on_cpu), str(tmp_path / "rows")], check=True, cwd=root)
    expected = torch.load(tmp_path / "rows")
    figures[f"rows in {precision}"] = checks.rows_equal_the_cpus(device, on_cpu, expected, precision)


LAYOUTS = {
    "one": (1, ()),
    "one in bf16": (1, ("train.precision=bf16",)),
    "recomputed": (1, ("train.precision=bf16", "train.recompute=full")),
    "tensor": (2, ("parallel.tensor=2",)),
    "tensor, sequence": (2, ("parallel.tensor=2", "parallel.sequence=true", "train.precision=bf16")),
    "pipeline": (2, ("parallel.pipeline=2",)),
    "data, ZeRO-1": (2, ("train.precision=bf16",)),
    "data, ZeRO-2, overlapped": (2, ("zero.stage=2", "zero.overlap_comm=true")),
    "data, ZeRO-3": (2, ("zero.stage=3",)),
}


@pytest.mark.parametrize("layout", [pytest.param(n, marks=needs_two if r > 1 else ()) for n, (r, _) in LAYOUTS.items()])
def test_training(figures: dict[str, Any], on_cpu: Path, tmp_path: Path, layout: str) -> None:
    """By NCCL where there are several, with capture on; losses as on the CPU."""
    ranks, overrides = LAYOUTS[layout]
    rows = ("callbacks.capture.proj=8", "callbacks.capture.head=8", "callbacks.capture.codecs=[fp32]")
    captured = ("callbacks.capture.enabled=true", *rows)
    done = pretrain(tmp_path / "run", *SMALL, *captured, *overrides, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    got, expected = (
        [line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in (tmp_path / "run", on_cpu)
    )
    apart = max(abs(one / other - 1) for one, other in zip(got, expected, strict=True))
    figures[f"losses, {layout}"] = apart
    assert apart <= (2e-2 if any("bf16" in each for each in overrides) else 1e-3)


@pytest.mark.parametrize("bench", ["kernels", "collect", "train", "capture"])
def test_benches(figures: dict[str, Any], tmp_path: Path, bench: str) -> None:
    command = [sys.executable, "-c", "from headwater.launch.cli import main; main()", "bench", bench]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "found.json")], capture_output=True, text=True, timeout=300, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    figures[f"bench {bench}"] = json.loads((tmp_path / "found.json").read_text())
