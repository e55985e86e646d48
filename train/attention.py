"""Attention within segments: block-diagonal and causal, so that packed passages do not see each other.

Letters: T tokens of a micro-batch (its sequences end to end), N segments, L the longest segment, H query heads, G key
and value heads, D width of a head.

On a GPU a variable-length kernel reads the segments in place and no S x S mask ever exists. On a CPU the segments are
gathered into a [N, L] batch, padded by repeating a segment's own last token, so that nothing of a neighbour is ever
read; a causal mask then suffices, because a padded key comes after every real query.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from headwater.train.settings import ModelSettings

_ROUND_LENGTH = 16  # oneDNN compiles anew for each new shape: a few lengths are cheaper than many


@dataclass
class Segments(PackedSeqParams):
    """The segments of a micro-batch, in the object that Megatron hands down to the attention.

    `qkv_format` stays "sbhd" with batch 1: Megatron then leaves query, key and value in [T, 1, H, D], and the rotary
    module below has already put each token at its place in its own segment.
    """

    cu_seqlens: Tensor | None = None  # int32 [N+1], starting at 0 and ending at T
    positions_T: Tensor | None = None  # int64, place of each token in its segment
    gather_NL: Tensor | None = None  # int64, token read at each padded place
    scatter_T: Tensor | None = None  # int64, padded place of each token
    longest: int = 0

    @classmethod
    def from_lengths(cls, lengths: Tensor) -> Segments:
        """lengths: int [N], all positive, their sum is T. A rest without passages is a segment like any other."""
        lengths = lengths.to(torch.int64)
        device = lengths.device
        ends = lengths.cumsum(0)
        starts = ends - lengths
        longest = int(lengths.max())
        padded = -(-longest // _ROUND_LENGTH) * _ROUND_LENGTH
        number_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        positions_T = torch.arange(int(ends[-1]), device=device) - starts[number_T]
        place_L = torch.arange(padded, device=device)
        gather_NL = torch.minimum(starts[:, None] + place_L, ends[:, None] - 1)
        cu_seqlens = torch.cat([starts.new_zeros(1), ends]).to(torch.int32)
        return cls(
            qkv_format="sbhd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            cu_seqlens=cu_seqlens,
            positions_T=positions_T,
            gather_NL=gather_NL,
            scatter_T=number_T * padded + positions_T,
            longest=padded,
        )

    def as_thd(self) -> PackedSeqParams:
        """The same for Transformer Engine, which has kernels of its own for packed sequences."""
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=self.cu_seqlens,
            cu_seqlens_kv=self.cu_seqlens,
            max_seqlen_q=self.max_seqlen_q,
            max_seqlen_kv=self.max_seqlen_kv,
        )


class _Gather(torch.autograd.Function):
    """x[gather_NL], whose backward is a plain read too: a padded copy carries no gradient."""

    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, gather_NL: Tensor, scatter_T: Tensor) -> Tensor:
        ctx.save_for_backward(scatter_T)
        return x_TX.index_select(0, gather_NL.reshape(-1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (scatter_T,) = ctx.saved_tensors
        return grads[0].index_select(0, scatter_T), None, None


class _Scatter(torch.autograd.Function):
    """padded[scatter_T]; the backward leaves zeros at padded places."""

    @staticmethod
    def forward(ctx: Any, padded_PX: Tensor, scatter_T: Tensor) -> Tensor:
        ctx.save_for_backward(scatter_T)
        ctx.rows = padded_PX.shape[0]
        return padded_PX.index_select(0, scatter_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (scatter_T,) = ctx.saved_tensors
        out = grads[0].new_zeros(ctx.rows, grads[0].shape[1])
        return out.index_copy_(0, scatter_T, grads[0]), None


class _Causal(torch.autograd.Function):
    """softmax(scale q k^T + mask) v, with what autograd would copy done in place and only the weights kept."""

    @staticmethod
    def forward(ctx: Any, query_BMD: Tensor, key_BLD: Tensor, value_BLD: Tensor, scale: float) -> Tensor:
        longest = key_BLD.shape[1]
        scaled_BMD = query_BMD * scale
        later_LL = query_BMD.new_full((longest, longest), float("-inf")).triu_(1)
        later_ML = later_LL.repeat(query_BMD.shape[1] // longest, 1)
        # Adding the mask in the product is free; filling it in afterwards is not.
        weights_BML = torch.baddbmm(later_ML, scaled_BMD, key_BLD.transpose(1, 2)).softmax(dim=-1)
        ctx.save_for_backward(scaled_BMD, key_BLD, value_BLD, weights_BML)
        ctx.scale = scale
        return torch.bmm(weights_BML, value_BLD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        scaled_BMD, key_BLD, value_BLD, weights_BML = ctx.saved_tensors
        pull_BMD = grads[0]
        value_grad = torch.bmm(weights_BML.transpose(1, 2), pull_BMD)
        weights_grad = torch.bmm(pull_BMD, value_BLD.transpose(1, 2))
        scores_grad = torch.ops.aten._softmax_backward_data(weights_grad, weights_BML, -1, weights_BML.dtype)
        key_grad = torch.bmm(scores_grad.transpose(1, 2), scaled_BMD)
        return torch.bmm(scores_grad, key_BLD).mul_(ctx.scale), key_grad, value_grad, None


def attend_causal(query_NHLD: Tensor, key_NGLD: Tensor, value_NGLD: Tensor, scale: float | None = None) -> Tensor:
    """Causal attention by plain batched matrix products; returns [N, H, L, D].

    At the lengths of passages this beats `scaled_dot_product_attention` on a CPU, whose backward is slow there
    (`headwater bench train` prints both). It holds H x L weights a token until the backward pass.

    Args:
        query_NHLD: H query heads; each G of keys and values serves H / G of them.
        key_NGLD, value_NGLD: of the same length L.
        scale: of the scores, D^-1/2 if not given.
    """
    number, heads, longest, width = query_NHLD.shape
    groups = key_NGLD.shape[1]
    # Query heads that share a key head are stacked along the query axis: one product for all of them.
    out_BMD = _Causal.apply(
        query_NHLD.reshape(number * groups, heads // groups * longest, width),
        key_NGLD.reshape(number * groups, longest, width),
        value_NGLD.reshape(number * groups, longest, width),
        width**-0.5 if scale is None else scale,
    )
    return out_BMD.view(number, heads, longest, width)


def attend_padded(query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, segments: Segments) -> Tensor:
    """Attention within segments, gathered into a padded batch; returns [T, H*D]."""
    tokens, heads, width = query_THD.shape
    assert segments.gather_NL is not None
    number, longest = segments.gather_NL.shape

    def padded(x: Tensor) -> Tensor:
        flat = _Gather.apply(x.reshape(tokens, -1), segments.gather_NL, segments.scatter_T)
        return flat.view(number, longest, -1, width).transpose(1, 2)

    out_NHLD = attend_causal(padded(query_THD), padded(key_TGD), padded(value_TGD))
    return _Scatter.apply(out_NHLD.transpose(1, 2).reshape(number * longest, heads * width), segments.scatter_T)


def attend_varlen(query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, segments: Segments) -> Tensor:
    """Attention within segments by torch's variable-length flash kernel (CUDA, half precision); returns [T, H*D]."""
    from torch.nn.attention.varlen import varlen_attn

    assert segments.cu_seqlens is not None
    out = varlen_attn(
        query_THD,
        key_TGD,
        value_TGD,
        segments.cu_seqlens,
        segments.cu_seqlens,
        segments.max_seqlen_q,
        segments.max_seqlen_kv,
        window_size=(-1, 0),
        enable_gqa=query_THD.shape[1] != key_TGD.shape[1],
    )
    assert isinstance(out, Tensor)
    return out.reshape(out.shape[0], -1)


class SegmentAttention(torch.nn.Module):
    """Megatron's `core_attention`: [T, 1, H, D] queries and [T, 1, G, D] keys and values in, [T, 1, H*D] out."""

    def __init__(self, config: Any, layer_number: int, *_: Any, **__: Any) -> None:
        super().__init__()
        self.layer_number = layer_number

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Segments | None = None,
    ) -> Tensor:
        if packed_seq_params is None:
            raise ValueError("SegmentAttention needs the segments of its micro-batch")
        fused = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
        attend = attend_varlen if fused else attend_padded
        return attend(query.squeeze(1), key.squeeze(1), value.squeeze(1), packed_seq_params).unsqueeze(1)


def rotary_frequencies(model: ModelSettings) -> Tensor:
    """Radians a token by which each pair of a head's numbers turns, float32 [D / 2].

    `linear` scaling divides all by the factor. That of Llama 3.1 divides those that turn less than `rope_low` times in
    the context that the model was first trained on, leaves those that turn more than `rope_high` times, and goes from
    one to the other linearly in the number of turns (Grattafiori et al. 2024, arXiv 2407.21783; its code).
    """
    width = model.head_width
    frequencies = 1.0 / model.rope_base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    if model.rope_scaling == "none":
        return frequencies
    slower = frequencies / model.rope_factor
    if model.rope_scaling == "linear":
        return slower
    turns = model.rope_context * frequencies / (2 * math.pi)
    share = ((turns - model.rope_low) / (model.rope_high - model.rope_low)).clamp(0, 1)
    return share * frequencies + (1 - share) * slower


class SegmentRotary(torch.nn.Module):
    """Rotary angles at each token's place within its own segment.

    Megatron's module knows one run of positions per sequence and asks for a CUDA device; this one is told the positions
    of the micro-batch (`positions_T`) just before the forward pass that uses them.

    Args:
        frequencies: radians a token, float32 [D / 2].
    """

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.inv_freq = frequencies
        self.positions_T: Tensor | None = None

    def get_rotary_seq_len(self, *_: Any, **__: Any) -> int:
        assert self.positions_T is not None
        return len(self.positions_T)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Angles, float32 [T, 1, 1, D]."""
        assert self.positions_T is not None
        if self.inv_freq.device != self.positions_T.device:
            self.inv_freq = self.inv_freq.to(self.positions_T.device)
        angles = torch.outer(self.positions_T.float(), self.inv_freq)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]
