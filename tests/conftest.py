"""What several folders' tests share: one tiny pretraining run and one tiny Hugging Face model, each made once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .jobs import train

os.environ.setdefault("PYTHONWARNINGS", "ignore")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each of the processes that share the tests


@pytest.fixture(autouse=True)
def fresh_numerics() -> None:
    """Every test begins with torch's own numerics: threads and matmul precision are the process's, not the test's."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.set_float32_matmul_precision("highest")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that no worker is left alone with one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pretrain(out: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """`torchrun -m headwater.train pretrain/tiny out=... overrides`; the finished process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launcher, "-m", "headwater.train"] if ranks > 1 else [sys.executable, "-m", "headwater.train"]
    command += ["pretrain/tiny", f"out={out}", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`once(name, make)` is a directory that `make` has filled: called by the first of the processes that share the
    tests, while the others wait. Who reads it must not change it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        directory, finished = shared / name, shared / f"{name}.made"
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                make(directory)
                finished.touch()
        return directory

    return made


@pytest.fixture(scope="session")
def tiny_run(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A finished run of twelve steps with checkpoints at 6 and 12. Read only: copy it to change it."""

    def make(directory: Path) -> None:
        given = ["train.steps=12", "checkpoint.every=6", "callbacks.probes.every=6"]
        train(["pretrain/tiny", f"out={directory / 'run'}", *given], log=directory / "log")

    return once("tiny", make) / "run"


@pytest.fixture(scope="session")
def tiny_llama(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A random Llama of two layers with a byte-level tokenizer of its own, context 64."""
    return once("llama", _make_llama)


def _make_llama(path: Path) -> None:
    from headwater.train.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(["<s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(path)
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
