"""The one place that meets Megatron's model: a Llama-shaped GPTModel over packed passages.

A micro-batch is one run of T tokens, its sequences end to end, with the segments that its passages occupy. The model
returns the weighted sum of token losses; the head's logits are made a chunk at a time and never held (losses.py).

Parameter names are canonical: those of the unsharded, unpiped model, layers numbered from 0 over all stages.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from headwater.train import parallel
from headwater.train.attention import SegmentAttention, SegmentRotary, Segments, rotary_frequencies
from headwater.train.losses import head_loss
from headwater.train.parallel import World
from headwater.train.settings import ModelSettings, TrainSettings
from headwater.train.zero import whole_shape

EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"
HEAD_NORMS = ("q_layernorm.weight", "k_layernorm.weight")
"""Norms of each head's queries and keys: shared by all heads, and so by all tensor-parallel ranks."""
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def use_transformer_engine() -> bool:
    return bool(gpt_layer_specs.HAVE_TE) and torch.cuda.is_available()


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm whose weight knows about sequence parallelism: Megatron's own local one refuses it."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


@dataclass(slots=True)
class Batch:
    """A micro-batch on its device.

    Attributes:
        tokens_T, labels_T: int64. A label is the token after, within the same passage.
        weights_T: float32, what each token's loss counts; 0 at a passage's last token and at padding.
        segments: where passages (and the padding between them) begin and end.
        found: weights and their `places`, as they were when the batch was moved.
    """

    tokens_T: Tensor
    labels_T: Tensor
    weights_T: Tensor
    segments: Segments
    found: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_lengths(cls, tokens_T: Tensor, lengths_N: Tensor, counted_N: Tensor | None = None) -> Batch:
        """Every token but a segment's first is predicted; segments with `counted_N` False (padding) carry no loss."""
        segments = Segments.from_lengths(lengths_N)
        labels_T = torch.roll(tokens_T, -1)
        weights_T = torch.ones(len(tokens_T), dtype=torch.float32, device=tokens_T.device)
        weights_T[lengths_N.cumsum(0) - 1] = 0
        if counted_N is not None:
            weights_T *= torch.repeat_interleave(counted_N.float(), lengths_N)
        return cls(tokens_T, labels_T, weights_T, segments)

    def places(self) -> Tensor:
        """int64 [K], the places whose weight is not 0; of a batch that was moved they are known without asking its
        device."""
        if self.found is not None and self.found[0] is self.weights_T:
            return self.found[1]
        return self.weights_T.nonzero().squeeze(1)

    def pinned(self) -> Batch:
        """The same in page-locked memory, which a GPU copies from while the host goes on."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed, one that stands in it twice once."""
        known: dict[int, Tensor] = {}

        def changed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) not in known:
                known[id(value)] = change(value)
            return known[id(value)]

        places_K = self.places()
        segments = Segments(**{name: changed(value) for name, value in vars(self.segments).items()})
        weights_T = changed(self.weights_T)
        return Batch(
            changed(self.tokens_T), changed(self.labels_T), weights_T, segments, (weights_T, changed(places_K))
        )


class PackedGPT(GPTModel):
    """GPTModel whose last stage returns losses instead of logits. `loss_kind` is one of `losses.LOSSES`, `z_loss` the
    weight of the z-loss in its gradient."""

    loss_kind = "cross_entropy"
    z_loss = 0.0
    post_process: bool
    places_K: Tensor

    def run(self, batch: Batch) -> Any:
        """One micro-batch. Last stage: (sum, loss_K, logprob_K, greedy_K) over the K places whose weight is not 0."""
        return self(**self.inputs(batch))

    @torch.no_grad()
    def logits(self, tokens_T: Tensor) -> Tensor:
        """Next-token logits of one text, float32 [T, V]; of models that are not cut into parts.

        Args:
            tokens_T: int64 [T], the beginning token first.
        """
        if parallel.tensor_size() > 1 or not (self.pre_process and self.post_process):
            raise RuntimeError("logits are given by whole models alone")
        batch = Batch.from_lengths(tokens_T, torch.tensor([len(tokens_T)])).to(tokens_T.device)
        self.post_process = False  # the states before the head, which is never applied to more than is asked for
        try:
            hidden_T1d = self.run(batch)
        finally:
            self.post_process = True
        weight_Vd = self.head_weight
        return (hidden_T1d.squeeze(1) @ weight_Vd.T).float()

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The arguments of `forward` for a micro-batch; the rotary module is told about its positions, and the head
        which places have a loss."""
        self.rotary_pos_emb.positions_T = batch.segments.positions_T
        self.places_K = batch.places()
        assert batch.segments.positions_T is not None
        return {
            "input_ids": batch.tokens_T[None],
            "position_ids": batch.segments.positions_T[None],
            "attention_mask": None,
            "labels": batch.labels_T[None],
            "loss_mask": batch.weights_T[None],
            "packed_seq_params": batch.segments.as_thd() if use_transformer_engine() else batch.segments,
        }

    def _postprocess(self, hidden_states: Tensor, **inputs: Any) -> Any:  # type: ignore[override]
        if not self.post_process:
            return hidden_states
        labels, weights = inputs["labels"], inputs["loss_mask"]
        if self.config.sequence_parallel:
            hidden_states = tensor_parallel.gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False
            )
        weight_Vd = self.head_weight
        places_K = self.places_K
        sharded = parallel.tensor_size() > 1
        return head_loss(
            hidden_states.squeeze(1).index_select(0, places_K),
            weight_Vd,
            labels.reshape(-1)[places_K],
            weights.reshape(-1)[places_K],
            kind=self.loss_kind,
            group=parallel.tensor_group() if sharded else None,
            first_row=parallel.tensor_rank() * weight_Vd.shape[0],
            z_loss=self.z_loss,
        )

    def setup_embeddings_and_output_layer(self) -> None:
        """Marks the copies of a tied embedding. Megatron would also make them equal here, through CUDA memory;
        `initialize` draws both from the same key."""
        if self.tied and self.pre_process != self.post_process and (self.pre_process or self.post_process):
            self.shared_embedding_or_output_weight().shared_embedding = True

    @property
    def tied(self) -> bool:
        return bool(self.share_embeddings_and_output_weights)

    @property
    def head_weight(self) -> torch.nn.Parameter:
        """The output head's, which may be the embedding's; on the last stage."""
        weight = self.shared_embedding_or_output_weight() if self.tied else self.output_layer.weight
        assert isinstance(weight, torch.nn.Parameter)
        return weight


def build_model(
    model: ModelSettings, train: TrainSettings, world: World, *, seed: int, sequence: bool = False
) -> PackedGPT:
    """This rank's part of the model, with weights that depend on the seed and the parameter's name alone."""
    config = transformer_config(model, train, world, sequence)
    gpt = PackedGPT(
        config=config,
        transformer_layer_spec=_block_spec(config),
        vocab_size=model.vocab_size,
        max_sequence_length=1 << 30,
        pre_process=world.first_stage,
        post_process=world.last_stage,
        parallel_output=True,
        share_embeddings_and_output_weights=model.tie_embeddings,
        position_embedding_type="rope",
        rotary_base=int(model.rope_base),
    )
    gpt.z_loss = train.z_loss
    frequencies = rotary_frequencies(model)
    if use_transformer_engine():
        gpt.rotary_pos_emb.inv_freq = frequencies.to(gpt.rotary_pos_emb.inv_freq)
    else:
        gpt.rotary_pos_emb = SegmentRotary(frequencies)
    for name, parameter in gpt.named_parameters():
        if name.endswith(HEAD_NORMS) and world.tensor > 1:  # each rank's heads are a part of what it is summed over
            parameter.sequence_parallel = True  # type: ignore[attr-defined]
    initialize(gpt, model, seed)
    return gpt.to(world.device)


def transformer_config(
    model: ModelSettings, train: TrainSettings, world: World, sequence: bool = False
) -> TransformerConfig:
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_width,
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_norm,
        ffn_hidden_size=model.ffn_hidden,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=world.tensor,
        pipeline_model_parallel_size=world.pipeline,
        sequence_parallel=sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=True,
        perform_initialization=False,
        masked_softmax_fusion=False,
        # One kernel for silu(gate) * up, which keeps neither; on a CPU it would be compiled for no gain.
        bias_activation_fusion=torch.cuda.is_available(),
        bias_dropout_fusion=False,
        apply_rope_fusion=use_transformer_engine(),
        gradient_accumulation_fusion=False,
        recompute_granularity=None if train.recompute == "none" else train.recompute,
        recompute_method="uniform" if train.recompute == "full" else None,
        recompute_num_layers=1 if train.recompute == "full" else None,
    )


def _block_spec(config: TransformerConfig) -> Any:
    if use_transformer_engine():
        return gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    spec = gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    spec.submodules.input_layernorm = RMSNorm
    spec.submodules.pre_mlp_layernorm = RMSNorm
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = SegmentAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    # The block is spelled out for the sake of its last norm, which would be Megatron's own otherwise.
    return TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(config), layer_norm=RMSNorm)


@dataclass(frozen=True, slots=True)
class ParameterPart:
    """Where this rank's part of a parameter lies in the whole.

    Attributes:
        name: canonical name.
        parameter: this rank's part.
        shape: of the whole.
        dim: the dimension shared out over tensor-parallel ranks, or None when every rank holds all of it.
        gated: the rows are two stacked matrices (gate, then up), each shared out on its own.
    """

    name: str
    parameter: torch.nn.Parameter
    shape: tuple[int, ...]
    dim: int | None
    gated: bool

    def slice(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """This rank's part of the whole tensor."""
        if self.dim is None:
            return whole
        if not self.gated:
            return whole.chunk(size, dim=self.dim)[rank]
        gate, up = whole.chunk(2, dim=0)
        return torch.cat([gate.chunk(size)[rank], up.chunk(size)[rank]])

    def join(self, parts: list[Tensor]) -> Tensor:
        """The whole tensor from every rank's part."""
        if self.dim is None:
            return parts[0]
        if not self.gated:
            return torch.cat(parts, dim=self.dim)
        halves = [part.chunk(2, dim=0) for part in parts]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])


def parameter_parts(gpt: PackedGPT) -> Iterator[ParameterPart]:
    """Every parameter of this rank under its canonical name. A tied head's second copy, on the last pipeline stage, is
    left out: it is the embedding."""
    size = parallel.tensor_size()
    offset = min((layer.layer_number for layer in gpt.decoder.layers), default=1) - 1
    for name, parameter in gpt.named_parameters():
        if gpt.tied and name == HEAD:
            continue
        canonical = canonical_name(name, offset)
        dim = _sharded_dim(canonical)
        shape = list(whole_shape(parameter))
        if dim is not None:
            shape[dim] *= size
        yield ParameterPart(canonical, parameter, tuple(shape), dim, "linear_fc1.weight" in canonical)


def canonical_name(name: str, offset: int) -> str:
    """The name in the whole model of a parameter of a stage that begins with layer `offset`; Transformer Engine keeps
    norms in the linear layers that follow them."""
    if not name.startswith("decoder.layers."):
        return name
    _, _, number, rest = name.split(".", 3)
    return f"decoder.layers.{int(number) + offset}.{_FUSED_NORMS.get(rest, rest)}"


def _sharded_dim(name: str) -> int | None:
    if name.endswith(("linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight", EMBEDDING, HEAD)):
        return 0
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return 1
    return None


def tied_copy(gpt: PackedGPT) -> torch.nn.Parameter | None:
    """The last stage's copy of a tied embedding, when it is not the first stage's own."""
    if gpt.tied and gpt.post_process and not gpt.pre_process:
        return gpt.output_layer.weight
    return None


def head_part(gpt: PackedGPT) -> ParameterPart | None:
    """The output head on the last stage, under its own name if it is tied, too; None on the others."""
    if not gpt.post_process:
        return None
    rows, width = whole_shape(gpt.head_weight)
    return ParameterPart(HEAD, gpt.head_weight, (rows * parallel.tensor_size(), width), 0, False)


@torch.no_grad()
def initialize(gpt: PackedGPT, model: ModelSettings, seed: int) -> None:
    """Normal weights (residual outputs scaled by 1/sqrt(2 layers)), norms at one, biases at zero.

    Each tensor is drawn whole from a generator keyed by (seed, name) and then sliced, so every layout starts alike.
    """
    rank, size = parallel.tensor_rank(), parallel.tensor_size()
    targets = list(parameter_parts(gpt))
    copy = tied_copy(gpt)
    if copy is not None:
        targets.append(ParameterPart(EMBEDDING, copy, (copy.shape[0] * size, copy.shape[1]), 0, False))
    for part in targets:
        # Megatron sets this while it initialises; whoever sums a gradient norm over ranks asks for it.
        part.parameter.tensor_model_parallel = part.dim is not None  # type: ignore[attr-defined]
        if len(part.shape) == 1:
            part.parameter.fill_(0.0 if part.name.endswith(".bias") else 1.0)
            continue
        key = hashlib.sha256(f"{seed}/{part.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        residual = part.name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        std = model.init_std / math.sqrt(2 * model.layers) if residual else model.init_std
        whole = torch.empty(part.shape).normal_(0.0, std, generator=generator)
        part.parameter.copy_(part.slice(whole, rank, size))
