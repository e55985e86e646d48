"""The attention of Hugging Face models on a CPU: for sequences as short as passages, Headwater's own.

`scaled_dot_product_attention` has a slow backward pass there: a quarter of what the rows of a small model cost. Every
model that may use it takes its attention from a registry, so this is one entry in it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from headwater.attribution.models.weights import quiet
from headwater.train.attention import attend_causal

NAME = "headwater_causal"
LONGEST = 512
"""Tokens of a sequence up to which plain products are faster; beyond, their weights would also fill the memory."""


def attention(
    module: nn.Module,
    query_NHLD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """What transformers calls, returns ([N, L, H, D], None); all but plain causal attention goes the usual way."""
    causal = attention_mask is None and is_causal is not False and getattr(module, "is_causal", True)
    length = query_NHLD.shape[2]
    one_width = query_NHLD.shape[-1] == value_NGLD.shape[-1]  # MLA's values may be narrower
    if not causal or dropout or length > LONGEST or length != key_NGLD.shape[2] or not one_width:
        return sdpa_attention_forward(
            module,
            query_NHLD,
            key_NGLD,
            value_NGLD,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **rest,
        )
    return attend_causal(query_NHLD, key_NGLD, value_NGLD, scaling).transpose(1, 2), None


def use_fast_attention(model: Any) -> None:
    """Gives a model that would use `scaled_dot_product_attention` this one."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        with quiet():  # a family with attention classes of its own keeps what it has, and says so
            model.set_attn_implementation(NAME)
