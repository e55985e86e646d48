"""The attention that Hugging Face models are given on a CPU against their own eager one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from headwater.train.compat import declare_torchvision_operators

declare_torchvision_operators()

import transformers  # noqa: E402

from headwater.attribution.models import huggingface_attention  # noqa: E402

SIZES = {"vocab_size": 97, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
CONFIGS = {
    "llama, grouped": transformers.LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2),
    "gpt-neox": transformers.GPTNeoXConfig(**SIZES, intermediate_size=48),
    "gpt-2": transformers.GPT2Config(vocab_size=97, n_layer=2, n_head=4, n_embd=32),
    "mistral, a window of 8": transformers.MistralConfig(
        **SIZES, intermediate_size=48, num_key_value_heads=2, sliding_window=8
    ),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that the fast attention was called with."""
    lengths: list[int] = []
    fast = huggingface_attention.attend_causal

    def counted(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        lengths.append(query.shape[2])
        return fast(query, *rest)

    monkeypatch.setattr(huggingface_attention, "attend_causal", counted)
    return lengths


def hidden_and_gradient(model: Any, length: int, mask: bool) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BL = torch.randint(0, 97, (3, length), generator=torch.Generator().manual_seed(length))
    inputs = model.get_input_embeddings()(ids_BL).detach().requires_grad_()
    attention_mask = torch.ones_like(ids_BL)
    if mask:
        attention_mask[1, : length // 2] = 0
    hidden = model.base_model(inputs_embeds=inputs, attention_mask=attention_mask, use_cache=False).last_hidden_state
    pull = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)) * attention_mask[:, :, None]
    return hidden.detach() * attention_mask[:, :, None], torch.autograd.grad(hidden, inputs, pull)[0]


@pytest.mark.parametrize("length", [1, 7, 21])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_equals_the_eager_attention(kind: str, mask: bool, length: int, calls: list[int]) -> None:
    """Hidden states and gradients; a window or masked tokens, which the fast one does not know, go the usual way."""
    torch.manual_seed(0)
    eager = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), attn_implementation="eager")
    fast = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), attn_implementation="sdpa")
    fast.load_state_dict(eager.state_dict())
    huggingface_attention.use_fast_attention(fast)
    got, expected = (hidden_and_gradient(model.eval(), length, mask) for model in (fast, eager))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    plain = (
        not (mask and length > 1) and not ("window" in kind and length > 8) and not (kind == "gpt-2" and length == 1)
    )
    assert calls == ([length] * 2 if plain else [])


def test_long_sequences_and_other_attentions_are_left_alone(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["gpt-neox"]
    eager = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    huggingface_attention.use_fast_attention(eager)
    assert eager.config._attn_implementation == "eager"
    long = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="sdpa")
    huggingface_attention.use_fast_attention(long)
    monkeypatch.setattr(huggingface_attention, "LONGEST", 16)
    hidden_and_gradient(long.eval(), 17, mask=False)
    assert calls == []
