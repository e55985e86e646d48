"""Directories of Hugging Face models from the wild: served as they are, or refused in one error; never filled up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.models.weights import plain_name
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError

from .families import make_family

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("llama", tmp_path_factory.mktemp("saved"))


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def rewrite(model: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(model / "model.safetensors")), model / "model.safetensors", {"format": "pt"})


def configure(model: Path, **settings: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_understood(saved: Path, model: Path, prefix: str) -> None:
    rewrite(model, lambda weights: {prefix + name: value for name, value in weights.items()})
    assert HuggingFaceModel(str(model)).fingerprint == HuggingFaceModel(str(saved)).fingerprint


def test_layers_that_were_compiled_one_by_one_are_understood(saved: Path, model: Path) -> None:
    rewrite(model, lambda ws: {n.replace("layers.1.", "layers.1._orig_mod."): value for n, value in ws.items()})
    assert HuggingFaceModel(str(model)).fingerprint == HuggingFaceModel(str(saved)).fingerprint
    assert plain_name("model.module.weight") == "model.module.weight", "only in front it is a wrapper's"


LACKING: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a missing MLP": (lambda ws: {n: w for n, w in ws.items() if "layers.1.mlp" not in n}, "missing (3)"),
    "a missing untied head": (
        lambda ws: {n: w for n, w in ws.items() if n != "lm_head.weight"},
        "lm_head.weight missing",
    ),
    "a body without a head": (
        lambda ws: {n.removeprefix("model."): w for n, w in ws.items() if n != "lm_head.weight"},
        "lm_head.weight missing",
    ),
    "a layer too many": (
        lambda ws: {**ws, **{n.replace("layers.1", "layers.2"): w.clone() for n, w in ws.items() if "layers.1" in n}},
        "unexpected (9)",
    ),
    "names of another family": (lambda ws: {n.replace("mlp", "feed_forward"): w for n, w in ws.items()}, "unexpected"),
}


@pytest.mark.parametrize("what", LACKING)
def test_weights_that_are_not_the_models_are_refused(model: Path, what: str) -> None:
    change, told = LACKING[what]
    rewrite(model, change)
    with pytest.raises(MismatchError, match="not those of the model that its config") as refused:
        HuggingFaceModel(str(model))
    assert told in str(refused.value.got)


def test_a_body_with_a_tied_head_is_whole(tmp_path: Path) -> None:
    path = make_family("gpt2", tmp_path)
    whole = HuggingFaceModel(str(path)).fingerprint
    rewrite(path, lambda ws: {n.removeprefix("transformer."): w for n, w in ws.items()})
    assert HuggingFaceModel(str(path)).fingerprint == whole


def test_weights_of_another_shape_are_refused(model: Path) -> None:
    configure(model, intermediate_size=48)
    with pytest.raises(MismatchError, match=r"not those of the model|cannot be opened"):
        HuggingFaceModel(str(model))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")


FILES: dict[str, tuple[Callable[[Path], object], type[UserError], str]] = {
    "no weights": (lambda m: (m / "model.safetensors").unlink(), MissingError, "has no weights"),
    "cut weights": (lambda m: cut(m / "model.safetensors"), CorruptError, "is cut"),
    "empty weights": (lambda m: (m / "model.safetensors").write_bytes(b""), CorruptError, "is cut"),
    "no header": (
        lambda m: (m / "model.safetensors").write_bytes(b"\5\0\0\0\0\0\0\0hello"),
        CorruptError,
        "no safetensors",
    ),
    "a pointer": (lambda m: pointer(m / "model.safetensors"), CorruptError, "pointer of Git LFS"),
    "a missing shard": (
        lambda m: (
            (m / "model.safetensors")
            .rename(m / "model.safetensors.index.json")
            .write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
        ),
        MissingError,
        "model-00001-of-00002.safetensors is missing",
    ),
    "an index of nothing": (
        lambda m: (m / "model.safetensors").rename(m / "model.safetensors.index.json").write_text("[]"),
        CorruptError,
        "lists no tensors",
    ),
    "a cut config": (lambda m: cut(m / "config.json"), CorruptError, "not valid JSON"),
    "no config": (lambda m: (m / "config.json").unlink(), MissingError, "not a Hugging Face model"),
    "a list for a config": (lambda m: (m / "config.json").write_text("[1]"), CorruptError, "not the configuration"),
    "an unknown type": (lambda m: configure(m, model_type="llama17"), UserError, "does not know this model_type"),
    "an encoder": (lambda m: configure(m, model_type="t5"), UserError, "not a causal language model"),
    "an encoder-decoder": (lambda m: configure(m, is_encoder_decoder=True), UserError, "not a causal language model"),
    "quantised": (
        lambda m: configure(m, quantization_config={"quant_method": "gptq", "bits": 4}),
        UserError,
        "is quantised",
    ),
    "its own code": (
        lambda m: configure(m, auto_map={"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}),
        UserError,
        "brings its own code",
    ),
    "an adapter beside": (lambda m: (m / "adapter_config.json").write_text("{}"), UserError, "holds an adapter"),
    "nonsense settings": (lambda m: configure(m, num_attention_heads="many"), CorruptError, "cannot be opened"),
}


@pytest.mark.parametrize("what", FILES)
def test_broken_directories_give_one_error(model: Path, what: str) -> None:
    change, kind, told = FILES[what]
    (model / "modeling_evil.py").write_text("raise SystemExit('run')")
    change(model)
    with pytest.raises(kind, match=told):
        HuggingFaceModel(str(model))


@pytest.mark.parametrize("damage", [None, cut, pointer])
def test_pickled_weights(saved: Path, model: Path, damage: Callable[[Path], None] | None) -> None:
    """Read without running code, with a wrapper's prefix; refused when they are cut."""
    weights = load_file(model / "model.safetensors")
    torch.save({f"module.{name}": value for name, value in weights.items()}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    if damage is None:
        assert HuggingFaceModel(str(model)).fingerprint == HuggingFaceModel(str(saved)).fingerprint
        return
    damage(model / "pytorch_model.bin")
    with pytest.raises(CorruptError):
        HuggingFaceModel(str(model))
