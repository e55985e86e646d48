"""LoRA adapters in PEFT's format: the adapted model's own gradients, of the adapter or of the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.models.opening import model_settings_of
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.settings import ProjectionSettings
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError

from .families import examples, make_family, relative

LAYERS = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (16, 32), "mlp.down_proj": (32, 40)}
RANK, ALPHA = 3, 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """As PEFT's save_pretrained writes it."""
    path, draw = tmp_path / "adapter", torch.Generator().manual_seed(2)
    path.mkdir()
    weights = {}
    for number in range(2):
        for name, (outputs, inputs) in LAYERS.items():
            key = f"base_model.model.model.layers.{number}.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(RANK, inputs, generator=draw) * 0.3
            weights[f"{key}.lora_B.weight"] = torch.randn(outputs, RANK, generator=draw) * 0.3
    save_file(weights, path / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def configure(adapter: Path, **settings: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def merged(base: Path, adapter: Path, out: Path, scale: float) -> Path:
    """The base model with W + s B A for its weights."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    weights = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{key}.lora_A.weight" in weights:
                parameter += scale * weights[f"{key}.lora_B.weight"] @ weights[f"{key}.lora_A.weight"]
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("stabilised", [False, True])
def test_the_bases_rows_are_those_of_the_merged_model(
    base: Path, adapter: Path, tmp_path: Path, stabilised: bool
) -> None:
    torch.set_num_threads(1)
    configure(adapter, use_rslora=stabilised)
    model = HuggingFaceModel(str(adapter), rows_of="base")
    scale = ALPHA / RANK**0.5 if stabilised else ALPHA / RANK
    whole = HuggingFaceModel(str(merged(base, adapter, tmp_path / "merged", scale)))
    assert model.all_shapes == whole.all_shapes
    settings = ProjectionSettings(dims=6), "none", "log_odds"
    got, expected = (GradientCollector(each, *settings).rows(examples()) for each in (model, whole))
    assert relative(got, expected) < 1e-5
    other = GradientCollector(HuggingFaceModel(str(base)), *settings).rows(examples())
    assert relative(got, other) > 0.1, "without the adapter they are others"


def test_the_adapters_rows_are_its_matrices(base: Path, adapter: Path) -> None:
    """dL/dA = s B^T G and dL/dB = s G A^T, with G the gradient of the whole weight; autograd says so at opening."""
    model = HuggingFaceModel(str(adapter))
    assert len(model.sites) == 2 * 2 * len(LAYERS)
    assert model.all_shapes["layers.1.self_attn.v_proj.lora_B"] == (16, RANK)
    rows = GradientCollector(model, ProjectionSettings(dims=40), "none", "log_odds").rows(examples())
    assert bool((rows.norm(dim=1) > 0).all())
    settings = model_settings_of(model.description, model.places)
    assert (settings.path, settings.rows_of) == (str(adapter), "adapter")


BROKEN: dict[str, tuple[dict[str, Any], type[UserError], str]] = {
    "weights that are decomposed": ({"use_dora": True}, UserError, "of a kind that is not known"),
    "another kind": ({"peft_type": "IA3"}, UserError, "of a kind that is not known"),
    "biases": ({"bias": "all"}, UserError, "of a kind that is not known"),
    "no base": ({"base_model_name_or_path": "somebody/llama"}, MissingError, "base model of the adapter"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_other_adapters_are_refused(adapter: Path, what: str) -> None:
    settings, kind, told = BROKEN[what]
    configure(adapter, **settings)
    with pytest.raises(kind, match=told):
        HuggingFaceModel(str(adapter))


def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = make_family("gpt2", tmp_path / "other")
    with pytest.raises(MismatchError, match="does not fit its base model"):
        HuggingFaceModel(str(adapter), base=str(other))


def test_half_an_adapter_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in weights if "lora_B" in name))
    save_file(weights, path)
    with pytest.raises(CorruptError, match="lacks a part"):
        HuggingFaceModel(str(adapter))
