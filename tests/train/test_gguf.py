"""Import of GGUF files: the weights of the directory that they were made from, and refusals of what is not plain."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.checkpoint import open_checkpoint
from headwater.train.compat import declare_torchvision_operators
from headwater.train.huggingface.importing import import_llama
from headwater.train.settings import ModelSettings

NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate"}
NAMES |= {"up_proj": "ffn_up", "down_proj": "ffn_down", "input_layernorm": "attn_norm"}
NAMES |= {"post_attention_layernorm": "ffn_norm"}
WANTED = ModelSettings(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn_hidden=96, vocab_size=40, rope_base=500.0, norm_eps=1e-4,
    tie_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    declare_torchvision_operators()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=40, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, rope_theta=500.0, rms_norm_eps=1e-4, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def write(
    path: Path, model, *, architecture: str = "llama", quantised: bool = False, tokenizer=None, **more: np.ndarray
) -> Path:
    """The file of a model as llama.cpp lays it out: the two halves of a head's rotary rows interleaved."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-4)
    writer.add_rope_freq_base(500.0)
    writer.add_vocab_size(40)
    if tokenizer is not None:
        tokenizer.save(path.with_suffix(".json"))
        parts = json.loads(path.with_suffix(".json").read_text())["model"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(sorted(parts["vocab"], key=parts["vocab"].get))
        writer.add_token_merges([" ".join(pair) for pair in parts["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        parts = name.split(".")
        if parts[1] == "layers":
            place = f"blk.{parts[2]}.{NAMES[parts[-2]]}.weight"
        else:
            place = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
                name.removesuffix(".weight")
            ] + ".weight"
        for part, heads in (("attn_q", 4), ("attn_k", 2)):
            if part in place:
                values = values.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(values.shape)
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantised and values.ndim == 2:
            writer.add_tensor(place, gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
        else:
            writer.add_tensor(place, np.ascontiguousarray(values))
    for place, values in more.items():
        writer.add_tensor(place.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_holds_what_the_directory_held(theirs, tmp_path: Path):
    theirs.save_pretrained(tmp_path / "hf")
    import_llama(tmp_path / "hf", tmp_path / "one")
    assert import_llama(write(tmp_path / "a.gguf", theirs), tmp_path / "other") == WANTED
    one, other = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "other")
    assert one.names == other.names
    for name in one.names:
        assert torch.equal(one.tensor("weight", name), other.tensor("weight", name)), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "hf", "one", "other"]
    import_llama(write(tmp_path / "b.gguf", theirs, quantised=True), tmp_path / "few")
    few, name = open_checkpoint(tmp_path / "few"), "decoder.layers.1.mlp.linear_fc2.weight"
    error = few.tensor("weight", name) - one.tensor("weight", name)
    assert 0 < error.abs().max() < one.tensor("weight", name).abs().max() / 100


def test_the_tokenizer_comes_along(theirs, tmp_path: Path):
    from headwater.train.tokenizer import TextTokenizer, train_tokenizer

    texts = ["Orvik trades salt for wool, and wool for salt.", "The town of Orvik stands by the sea."]
    tokenizer = train_tokenizer(texts, 320)
    import_llama(write(tmp_path / "a.gguf", theirs, tokenizer=tokenizer), tmp_path / "new")
    taken = TextTokenizer.from_file(tmp_path / "new" / "tokenizer.json")
    assert taken.encode(texts[0]).tolist() == tokenizer.encode(texts[0]).tolist()
    assert "tokenizer" in (tmp_path / "new" / "model.yaml").read_text()


def test_what_is_not_plain_or_no_file_is_refused(theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    factors = {"rope_freqs__weight": np.ones(8, dtype=np.float32)}
    with pytest.raises(MismatchError, match=r"rope_freqs\.weight"):
        import_llama(write(tmp_path / "scaled.gguf", theirs, **factors), tmp_path / "new")
    bias = {"blk__0__attn_q__bias": np.ones(64, dtype=np.float32)}
    with pytest.raises(MismatchError, match=r"blk\.0\.attn_q\.bias"):
        import_llama(write(tmp_path / "biased.gguf", theirs, **bias), tmp_path / "new")
    with pytest.raises(MismatchError, match="gemma"):
        import_llama(write(tmp_path / "other.gguf", theirs, architecture="gemma"), tmp_path / "new")
    (tmp_path / "none.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(CorruptError, match=r"none\.gguf cannot be read"):
        import_llama(tmp_path / "none.gguf", tmp_path / "new")
    with pytest.raises(MissingError, match=r"nowhere\.gguf is missing"):
        import_llama(tmp_path / "nowhere.gguf", tmp_path / "new")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        import_llama(tmp_path / "none.gguf", tmp_path / "new")
    assert not (tmp_path / "new").exists()
