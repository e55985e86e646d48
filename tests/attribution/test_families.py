"""Rows of many families of transformers against float64 autograd of their own losses, alone as together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.settings import ProjectionSettings
from headwater.configs.errors import UserError
from headwater.train.compat import declare_torchvision_operators

from .families import FAMILIES, TABLE, examples, make_family, measured


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_the_gradients_of_the_models_own_loss(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = measured(name, tmp_path)
    assert found["difference"] < 1e-4
    assert found["worst"] < 1e-3
    assert found["cosine"] > 0.999999
    assert found["alone"] < 1e-5
    assert 0.4 < found["coverage"] < 1
    assert f"| {name} |" in TABLE.read_text(), "python -m tests.attribution.families writes the table"


def test_experts_are_one_layer_and_count_each_passage_for_itself(tmp_path: Path) -> None:
    traced = HuggingFaceModel(str(make_family("mixtral", tmp_path)))
    assert traced.all_shapes["layers.0.block_sparse_moe.experts.w1"] == (4 * 40, 32)
    collector = GradientCollector(traced, ProjectionSettings(dims=4), "none", "log_odds")
    asked = examples()
    other = [asked[0], asked[2], asked[1]]
    assert torch.equal(collector.rows(asked)[0], collector.rows(other)[0])
    with pytest.raises(UserError, match="does not see every token"):
        collector.token_rows(asked[0])


def test_layers_that_are_never_called_are_named(tmp_path: Path) -> None:
    traced = HuggingFaceModel(str(make_family("gemma3n, shared keys", tmp_path)))
    assert {"layers.2.self_attn.k_proj", "layers.3.self_attn.v_proj"} <= set(traced.left_out)
    assert "layers.1.self_attn.k_proj" in traced.all_shapes


@pytest.mark.parametrize("kind", ["BertConfig", "T5Config"])
def test_what_does_not_predict_the_next_token_is_refused(kind: str, tmp_path: Path) -> None:
    declare_torchvision_operators()
    import transformers

    common = {"vocab_size": 131, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "BertConfig":
        config = transformers.BertConfig(**common, intermediate_size=40)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    else:
        config = transformers.T5Config(vocab_size=131, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
        transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a causal language model"):
        HuggingFaceModel(str(tmp_path))
