"""What a pretraining run needs, by arithmetic alone: parameters, memory of a GPU, operations, time, bytes on disk.

Letters: h width of the residual stream, f of the feed-forward layer, kv of the keys (and of the values), V vocabulary,
t tensor-parallel ranks, e bytes of a number in the forward pass. Sizes are bytes and times seconds.

The memory is that of the most loaded pipeline stage: the first, which keeps the activations of as many micro-batches
in flight as there are stages, or the last, which holds the head.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.train.settings import ModelSettings, PretrainSettings

GIB = 2**30
LOSS_CHUNK = 1024
"""Tokens whose logits exist at once (train/losses.py)."""

REDUCE_BUCKET = 500_000_000
"""Most numbers in DeepSpeed's reduction bucket by default."""

LIVE_PARAMETERS = 1_000_000_000
"""Most gathered weights that ZeRO-3 keeps at once by default."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device: bytes of memory, dense peak in FLOP/s by number format, bytes/s of memory (vendors' figures)."""

    memory: int
    bf16: float
    fp32: float
    bandwidth: float

    def peak(self, precision: str) -> float:
        return self.bf16 if precision == "bf16" else self.fp32


GPUS = {
    "a100-40": Gpu(40 * GIB, 312e12, 19.5e12, 1.555e12),
    "a100": Gpu(80 * GIB, 312e12, 19.5e12, 2.039e12),
    "h100": Gpu(int(79.6 * GIB), 989e12, 67e12, 3.35e12),
    "h200": Gpu(int(140.4 * GIB), 989e12, 67e12, 4.8e12),
    "b200": Gpu(int(179 * GIB), 2250e12, 80e12, 8e12),
    "l40s": Gpu(int(44.4 * GIB), 362e12, 91.6e12, 0.864e12),
    "mi300x": Gpu(192 * GIB, 1307e12, 163.4e12, 5.3e12),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run lies on its GPUs."""

    tensor: int
    pipeline: int
    data: int
    sequence: bool
    zero: int
    micro_batch: int
    micro_batches: int
    recompute: str

    @classmethod
    def of(cls, settings: PretrainSettings, gpus: int) -> Layout:
        parallel, train = settings.parallel, settings.train
        data = max(gpus // (parallel.tensor * parallel.pipeline), 1)
        return cls(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            data=data,
            sequence=parallel.sequence,
            zero=settings.zero.stage,
            micro_batch=train.micro_batch,
            micro_batches=max(train.global_batch // (train.micro_batch * data), 1),
            recompute=train.recompute,
        )


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters, exactly as the model is built."""

    embedding: int
    head: int
    matrices_of_a_layer: int
    norms_of_a_layer: int
    final_norm: int
    layers: int

    @property
    def matrices(self) -> int:
        """Of all layers' linear maps."""
        return self.layers * self.matrices_of_a_layer

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.matrices + self.layers * self.norms_of_a_layer + self.final_norm

    def on_stage(self, layout: Layout, first: bool, last: bool) -> int:
        """Of one GPU of a pipeline stage; a tied head on another stage than the embedding is a second copy."""
        layers = self.layers // layout.pipeline
        count = layers * (self.matrices_of_a_layer // layout.tensor + self.norms_of_a_layer)
        if first:
            count += self.embedding // layout.tensor
        if last:
            count += self.final_norm + (self.head or (0 if first else self.embedding)) // layout.tensor
        return count


def count_parameters(model: ModelSettings, vocab_size: int) -> Parameters:
    h, f, q, kv = model.hidden, model.ffn_hidden, model.query_width, model.key_width
    embedding = vocab_size * h
    return Parameters(
        embedding=embedding,
        head=0 if model.tie_embeddings else embedding,
        matrices_of_a_layer=h * (q + 2 * kv) + q * h + h * 2 * f + f * h,
        norms_of_a_layer=2 * h + (q + 2 * kv) * model.qkv_bias + 2 * model.head_width * model.qk_norm,
        final_norm=h,
        layers=model.layers,
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the most loaded GPU.

    `activations`, `head`, `sums` (what fp32 sums of bf16 gradients take beyond these) and `communication` are there in
    the backward pass, `update` (the fp32 gradients of this rank's part, or the bucket in which plain gradients are
    reduced) when it is over; the rest always. `moments` includes the fp32 master weights, where there are any.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    head: int
    sums: int
    communication: int
    update: int

    @property
    def total(self) -> int:
        """At the peak of a step."""
        backward = self.activations + self.head + self.sums + self.communication
        return self.weights + self.gradients + self.moments + max(backward, self.update)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bytes of a parameter: what every rank holds, and what is shared out over data-parallel ranks."""

    weights: float
    gradients: float
    moments: float
    update: float = 0.0
    sums: float = 0.0


def is_plain(precision: str, zero: int, data: int) -> bool:
    """Whether torch's AdamW works on the weights themselves (train/engine.py): fp32, and nothing to share out."""
    return precision == "fp32" and (zero == 0 or (data == 1 and zero <= 2))


def recipe_of(precision: str, zero: int, data: int, micro_batches: int = 1) -> Recipe:
    """What the engine holds for a parameter under torch's AdamW; `update` is the fp32 gradient that AdamW reads.

    Several micro-batches' bf16 gradients are added up in fp32 (train/accumulation.py), from ZeRO-2 on by DeepSpeed.
    """
    e = 2 if precision == "bf16" else 4
    adds_up = precision == "bf16" and micro_batches > 1
    if is_plain(precision, zero, data):
        return Recipe(weights=e, gradients=e, moments=8)
    shards = data if zero else 1
    # DeepSpeed keeps masters of its own, in fp32 too.
    return Recipe(
        weights=e / data if zero == 3 else e,
        gradients=(4 if adds_up else e) / data if zero >= 2 else e,
        moments=(4 + 8) / shards,
        update=4 / shards,
        sums=4 - e if adds_up and zero < 2 else 0,
    )


def layer_activations(settings: PretrainSettings, layout: Layout, *, fused: bool = True) -> float:
    """Bytes that one layer keeps of one micro-batch for its backward pass, on one GPU.

    Counted from what autograd saves in train/model.py: the inputs of norms and column-parallel layers (whole on every
    tensor-parallel rank, unless sequence parallelism shares them out); rotary cosines and sines; what attention keeps;
    its output; gate and up, and their product. `fused` is the way of a GPU: variable-length attention, norms and the
    gated activation in one kernel each. Plain operations also keep normalised inputs, silu(gate) and a copy of up.
    """
    model, tokens = settings.model, layout.micro_batch * settings.corpus.seq_len
    e = 2 if settings.train.precision == "bf16" else 4
    h, f, width = model.hidden, model.ffn_hidden, model.head_width
    q, kv = model.query_width, model.key_width
    whole = (4 if fused else 6) * h * e / (layout.tensor if layout.sequence else 1) + 4 * width * e
    if fused:
        # The values are a view of the joint query-key-value output, which therefore stays; and a float per query head.
        attention = ((q + 2 * kv) + (q + kv) + q) * e + 4 * model.heads
    elif layout.recompute == "selective":
        attention = (2 * q + 2 * kv) * e
    else:
        longest = min(settings.corpus.max_tokens, settings.corpus.seq_len)
        attention = (2 * q + 2 * kv + model.heads * longest) * e
    return tokens * (whole + (attention + (3 if fused else 5) * f * e) / layout.tensor)


def memory_of(
    settings: PretrainSettings,
    layout: Layout,
    vocab_size: int,
    *,
    recipe: Recipe | None = None,
    fused: bool = True,
    bucket: int = REDUCE_BUCKET,
) -> Memory:
    """Memory of the most loaded stage; `recipe` replaces DeepSpeed's bytes of a parameter by another trainer's."""
    stages = {(True, layout.pipeline == 1), (layout.pipeline == 1, True)}
    each = [
        _memory_of_stage(settings, layout, vocab_size, first, last, recipe, fused, bucket) for first, last in stages
    ]
    return max(each, key=lambda memory: memory.total)


def _memory_of_stage(
    settings: PretrainSettings,
    layout: Layout,
    vocab_size: int,
    first: bool,
    last: bool,
    recipe: Recipe | None,
    fused: bool,
    bucket: int,
) -> Memory:
    parameters = count_parameters(settings.model, vocab_size)
    count = parameters.on_stage(layout, first, last)
    precision, h = settings.train.precision, settings.model.hidden
    e = 2 if precision == "bf16" else 4
    recipe = recipe or recipe_of(precision, layout.zero, layout.data, layout.micro_batches)
    plain = is_plain(precision, layout.zero, layout.data)
    reduced_last = plain and layout.data > 1  # in a bucket, when backward is over; ZeRO does it as gradients come
    gathered = min(count, LIVE_PARAMETERS) * e if layout.zero == 3 and layout.data > 1 else 0

    tokens = layout.micro_batch * settings.corpus.seq_len
    in_flight = min(layout.pipeline if first else 1, layout.micro_batches)
    layers = parameters.layers // layout.pipeline
    one = layer_activations(settings, layout, fused=fused)
    head = 0.0
    if last:
        # The final norm's input and output, the places that carry loss, and their gradient; the head's own gradient, in
        # fp32 and in the weights' format; one chunk's logits, which become their gradient in place.
        rows = vocab_size // layout.tensor
        logits = 4 if e == 4 else 4 + e
        head = tokens * 4 * h * e + rows * h * (4 + e) + min(LOSS_CHUNK, tokens) * rows * logits
    if layout.recompute == "full":
        kept = tokens * h * e / (layout.tensor if layout.sequence else 1)
        # The layer that is computed again comes when the head is done with.
        activations = in_flight * layers * kept + max(one - head, 0)
    else:
        activations = in_flight * layers * one
    return Memory(
        weights=int(count * recipe.weights + gathered),
        gradients=int(count * recipe.gradients),
        moments=int(count * recipe.moments),
        activations=int(activations),
        head=int(head),
        sums=int(count * recipe.sums),
        # Reduced in fp32, whatever the gradients' format.
        communication=0 if plain else min(bucket, count) * (e + (4 if e < 4 and layout.data > 1 else 0)),
        update=int(count * recipe.update + (min(bucket, count) * e if reduced_last else 0)),
    )


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of one token, forward and backward, over the whole model."""

    matrices: float
    attention: float
    recomputed: float

    @property
    def model(self) -> float:
        """Without what is computed twice: the numerator of MFU."""
        return self.matrices + self.attention

    @property
    def total(self) -> float:
        return self.model + self.recomputed


def operations_of(settings: PretrainSettings, vocab_size: int) -> Operations:
    """Six for each weight of a matrix (the head's included); causal attention within passages of the longest length."""
    model = settings.model
    parameters = count_parameters(model, vocab_size)
    matrices = 6.0 * (parameters.matrices + vocab_size * model.hidden)
    length = min(settings.corpus.max_tokens, settings.corpus.seq_len)
    # Scores and mixing: 2 h operations each for a pair of places, over half the square, three times with backward.
    attention = 3.0 * model.layers * 2 * 2 * model.query_width * (length + 1) / 2
    recomputed = {"none": 0.0, "selective": attention / 3}.get(settings.train.recompute)
    if recomputed is None:
        recomputed = 2.0 * parameters.matrices + attention / 3
    return Operations(matrices, attention, recomputed)


def updates(settings: PretrainSettings) -> int:
    """Updates that a run makes: its learning-rate schedule's, unless it stops before."""
    return min(settings.train.steps, settings.train.hard_stop or settings.train.steps)


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds of a step and what they are made of."""

    step: float
    bubble: float
    tokens_per_second: float
    days: float


def time_of(settings: PretrainSettings, layout: Layout, vocab_size: int, gpu: Gpu, gpus: int, mfu: float) -> Time:
    """Time at a stated share of the peak, counted over all operations, lengthened by the pipeline's bubble.

    `days` are those of the updates that are made: up to train.hard_stop, where one is set.
    """
    tokens = settings.train.global_batch * settings.corpus.seq_len
    work = tokens * operations_of(settings, vocab_size).total / (gpus * gpu.peak(settings.train.precision) * mfu)
    bubble = (layout.pipeline - 1) / (layout.micro_batches + layout.pipeline - 1)
    step = work / (1 - bubble)
    return Time(step, bubble, tokens / step, step * updates(settings) / 86400)


def checkpoint_bytes(parameters: Parameters) -> int:
    """Weights and both moments, fp32, whole tensors whatever the layout."""
    return 12 * parameters.total
