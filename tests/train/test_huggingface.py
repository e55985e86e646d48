"""Export to and import from Hugging Face's Llama: same logits, same weights, same tokens, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.configs import load_config
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.checkpoint import open_checkpoint
from headwater.train.checkpoint_writer import save_weights
from headwater.train.compat import declare_torchvision_operators
from headwater.train.huggingface import export as huggingface
from headwater.train.huggingface.export import export_llama
from headwater.train.huggingface.importing import import_llama
from headwater.train.huggingface.names import join_qkv, split_qkv
from headwater.train.loading import load_weights
from headwater.train.model import Batch, build_model, parameter_parts
from headwater.train.settings import ModelSettings, PretrainSettings, TrainSettings
from headwater.train.stream.stream import open_stream

SHAPES = {
    "tied, grouped": {"tie_embeddings": True, "heads": 4, "kv_heads": 2},
    "untied, one head": {"tie_embeddings": False, "heads": 6, "kv_heads": 1, "rope_base": 500000.0, "norm_eps": 1e-3},
    "tied, whole heads": {"tie_embeddings": True, "heads": 3, "kv_heads": 3},
}


def settings(shape: str) -> ModelSettings:
    return ModelSettings(layers=2, hidden=48, ffn_hidden=44, vocab_size=128, init_std=0.2, **SHAPES[shape])


def save(directory: Path, model: ModelSettings, gpt) -> Path:
    directory.mkdir(parents=True)
    with torch.no_grad():
        for part in parameter_parts(gpt):  # norms that are not all one
            if part.parameter.dim() == 1:
                generator = torch.Generator().manual_seed(len(part.name))
                part.parameter.add_(torch.rand(part.shape, generator=generator))
    named = ((part.name, part.parameter.detach().clone()) for part in parameter_parts(gpt))
    from dataclasses import asdict

    save_weights(directory, named, {"step": 7, "updates": 7, "model": asdict(model)})
    return directory


def llama(directory: Path):
    declare_torchvision_operators()
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(directory, local_files_only=True, dtype="auto").eval()


def logprobs(gpt, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of every token but the first."""
    with torch.no_grad():
        return gpt.run(Batch.from_lengths(tokens, torch.tensor([len(tokens)])))[2]


def logits_of(gpt, tokens: torch.Tensor) -> torch.Tensor:
    """Megatron's last hidden states by the head's weight."""
    kept = []
    hook = gpt.decoder.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        gpt.run(Batch.from_lengths(tokens, torch.tensor([len(tokens)])))
    hook.remove()
    weight = gpt.embedding.word_embeddings.weight if gpt.tied else gpt.output_layer.weight
    return (kept[0].squeeze(1) @ weight.t()).detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_exported_logits_are_the_same(shape, world, tmp_path):
    model = settings(shape)
    gpt = build_model(model, TrainSettings(), world, seed=1)
    export_llama(save(tmp_path / "checkpoint", model, gpt), tmp_path / "hf")
    tokens = torch.randint(128, (37,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = llama(tmp_path / "hf")(tokens[None]).logits[0]
    expected = logits_of(gpt, tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    own = logits.log_softmax(1)[:-1].gather(1, tokens[1:, None]).squeeze(1)
    torch.testing.assert_close(own, logprobs(gpt, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_imported_model_has_the_same_logits_and_exports_to_the_same_weights(shape, world, tmp_path):
    declare_torchvision_operators()
    from transformers import LlamaConfig, LlamaForCausalLM

    wanted = settings(shape)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48, intermediate_size=44, num_hidden_layers=2, vocab_size=128, num_attention_heads=wanted.heads,
        num_key_value_heads=wanted.kv_heads, tie_word_embeddings=wanted.tie_embeddings, rope_theta=wanted.rope_base,
        rms_norm_eps=wanted.norm_eps, initializer_range=0.2,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    assert import_llama(tmp_path / "hf", tmp_path / "checkpoint") == wanted
    gpt = build_model(wanted, TrainSettings(), world, seed=5)
    checkpoint = open_checkpoint(tmp_path / "checkpoint")
    checkpoint.verify()
    load_weights(gpt, checkpoint)
    tokens = torch.randint(128, (29,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    torch.testing.assert_close(logits_of(gpt, tokens), expected, rtol=1e-4, atol=1e-4)
    export_llama(tmp_path / "checkpoint", tmp_path / "back")
    for (name, one), (_, other) in zip(
        sorted(theirs.state_dict().items()), sorted(llama(tmp_path / "back").state_dict().items()), strict=True
    ):
        assert torch.equal(one, other), name
    # The settings that are written beside it start a run from these weights.
    start = load_config(PretrainSettings, tmp_path / "checkpoint" / "model.yaml").model
    assert start.init_from == str((tmp_path / "checkpoint").resolve())
    start.init_from = None
    assert start == wanted


def test_query_key_value_rows_by_hand():
    model = ModelSettings(hidden=8, heads=4, kv_heads=2)
    q, k, v = (torch.arange(n)[:, None].expand(n, 8) + base for n, base in ((8, 0), (4, 100), (4, 200)))
    joined = join_qkv(q, k, v, model)
    assert joined[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]
    for one, other in zip(split_qkv(joined, model), (q, k, v), strict=True):
        assert torch.equal(one, other)


def test_a_large_model_goes_into_several_files(world, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "_FILE_BYTES", 30000)
    model = settings("untied, one head")
    gpt = build_model(model, TrainSettings(), world, seed=1)
    export_llama(save(tmp_path / "checkpoint", model, gpt), tmp_path / "hf", dtype="bf16")
    files = sorted(file.name for file in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    loaded = llama(tmp_path / "hf")
    assert loaded.dtype == torch.bfloat16
    own = next(part.parameter for part in parameter_parts(gpt) if part.name == "output_layer.weight")
    torch.testing.assert_close(loaded.lm_head.weight.float(), own.detach(), rtol=1e-2, atol=1e-4)


def loss_on_batch(model, run: Path, number: int) -> float:
    """The mean loss of a Hugging Face model over a batch of a run's stream, one passage at a time."""
    settings = load_config(PretrainSettings, run / "config.yaml")
    stream = open_stream(RunDir.at(run), global_batch=settings.train.global_batch, seed=settings.seed)
    losses = []
    for row in stream.sequences(number, 0, settings.train.global_batch):
        for passage in np.split(row.tokens[: row.lengths.sum()], row.lengths.cumsum()[:-1]):
            tokens = torch.from_numpy(passage.astype(np.int64))
            with torch.no_grad():
                logits = model(tokens[None]).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none"))
    return float(torch.cat(losses).double().mean())


@pytest.mark.slow
def test_a_run_is_exported_with_its_tokenizer(fresh, config, tmp_path):
    """It has the loss that the run had after as many updates, and so has training that starts from its weights."""
    from headwater.train.callbacks.metrics import read_metrics
    from headwater.train.tokenizer import TextTokenizer

    from ..jobs import train

    run = fresh()
    train([config, f"out={run}", "train.hard_stop=3"], log=run / "log")
    export_llama(run, tmp_path / "hf")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = TextTokenizer.from_file(run / "tokenizer.json")
    text = "River stone born in the city."
    assert theirs(text)["input_ids"] == [ours.bos_id, *ours.encode(text).tolist()]
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (written["max_position_embeddings"], written["bos_token_id"], written["eos_token_id"]) == (80, 0, 0)
    assert (theirs.bos_token, theirs.eos_token) == (ours.bos, ours.bos)  # which ends documents, too
    import_llama(tmp_path / "hf", tmp_path / "start")
    assert (
        open_checkpoint(tmp_path / "start").fingerprint
        == open_checkpoint(run / "checkpoints/step-00000003").fingerprint
    )
    assert (tmp_path / "start" / "tokenizer.json").exists()
    train([config, f"out={run}", "train.hard_stop=4"], log=run / "log")
    again = fresh()
    train([config, f"out={again}", "train.hard_stop=1", f"model.init_from={tmp_path / 'start'}", "optimizer.lr=0"],
          log=again / "log")  # fmt: skip
    first = read_metrics(again / "metrics.jsonl")[0]["loss"]
    before = read_metrics(run / "metrics.jsonl")
    assert first < 0.97 * before[0]["loss"]  # the same first batch, after three updates
    exported = llama(tmp_path / "hf")
    assert before[3]["loss"] == pytest.approx(loss_on_batch(exported, run, 3), rel=1e-5)
    assert first == pytest.approx(loss_on_batch(exported, again, 0), rel=1e-5)


def test_what_cannot_be_taken_over_is_refused(world, tmp_path):
    model = settings("tied, grouped")
    source = save(tmp_path / "checkpoint", model, build_model(model, TrainSettings(), world, seed=1))
    export_llama(source, tmp_path / "hf")
    with pytest.raises(UserError, match="is there already"):
        export_llama(source, tmp_path / "hf")
    with pytest.raises(UserError, match="number format"):
        export_llama(source, tmp_path / "new", dtype="fp8")
    with pytest.raises(MissingError, match="has no checkpoint"):
        export_llama(tmp_path, tmp_path / "new")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for key, value in {
        "model_type": "olmo2",
        "attention_bias": True,
        "hidden_act": "gelu",
        "mlp_bias": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0},
    }.items():
        (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(MismatchError, match=f"{key} cannot be taken over"):
            import_llama(tmp_path / "hf", tmp_path / "new")
    for change, error, named in (
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, CorruptError, "low_freq_factor"),
        ({"head_dim": 64}, MismatchError, "another shape than config.json says"),
        ({"model_type": "mistral", "sliding_window": 64}, MismatchError, "sliding_window"),
    ):
        (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(error, match=named):
            import_llama(tmp_path / "hf", tmp_path / "new")
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(MismatchError, match=r"has no tensor model\.layers\.2"):
        import_llama(tmp_path / "hf", tmp_path / "new")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="has no weights"):
        import_llama(tmp_path / "hf", tmp_path / "new")
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(MissingError, match=r"config\.json is missing"):
        import_llama(tmp_path / "hf", tmp_path / "new")
    with pytest.raises(MissingError, match="nowhere is not a directory"):
        import_llama(tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()
