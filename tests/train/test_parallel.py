"""Large libraries are met in one module each."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports anywhere in it; `from a import b` is `a.b`. Names given as text count too:
    `import_module("a.b")`, `find_spec("a")`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__", "find_spec")
        ):
            yield from (each.value for each in node.args if isinstance(each, ast.Constant))


@pytest.mark.parametrize(
    ("library", "adapters"),
    [
        (
            "megatron",
            {
                "train/parallel.py": {"parallel_state", "random"},
                "train/without_cuda.py": {"random"},
                "train/model.py": {
                    "tensor_parallel",
                    "gpt_layer_specs",
                    "GPTModel",
                    "TransformerConfig",
                    "TransformerBlockSubmodules",
                    "get_num_layers_to_build",
                },
                "train/attention.py": {"PackedSeqParams"},
                "train/pipeline.py": {"get_forward_backward_func"},
            },
        ),
        (
            "deepspeed",
            {
                "train/zero.py": {
                    "deepspeed",
                    "safe_get_full_fp32_param",
                    "safe_get_full_optimizer_state",
                    "safe_set_local_fp32_param",
                    "safe_set_local_optimizer_state",
                }
            },
        ),
        (
            "streaming",
            {"train/mosaic.py": {"streaming", "format"}},
        ),
    ],
)
def test_one_module_knows(library: str, adapters: dict[str, set[str]]):
    """What each file imports of a large library, late imports included: its adapter, and nobody else."""
    found = defaultdict(set)
    for package in ("configs", "kernels", "train", "attribution", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(path):
                if name.split(".")[0] == library:
                    found[path.relative_to(ROOT).as_posix()].add(name.split(".")[-1])
    assert found == adapters
