"""What a pretraining run can be told. Light on purpose: no torch here, so the command line starts fast."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from headwater.configs import Problem, describe, section, setting
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.facts.settings import FactsSettings
from headwater.train.stream.skipping import read_ranges

CODEC_NAMES = ("fp32", "bf16", "int8", "int4", "sign", "factors16", "factors8", "factors4")
"""Ways to store rows (attribution/index/codecs), the finest first."""

WIDEST_WHOLE = 128
"""Dimensions a side of the output head of which a whole curvature is still made: a matrix of 2 GiB."""


@dataclass(kw_only=True, slots=True)
class ModelSettings:
    """A Llama-shaped transformer: RMSNorm, SwiGLU, rotary positions, grouped-query attention; with biases of queries,
    keys and values as in Qwen2, or their norms as in Qwen3."""

    layers: int = setting(2, "Transformer blocks.", minimum=1)
    hidden: int = setting(256, "Width of the residual stream.", minimum=1)
    heads: int = setting(4, "Query heads.", minimum=1)
    kv_heads: int = setting(4, "Key and value heads (grouped-query attention).", minimum=1)
    head_dim: int = setting(0, "Width of a head; 0: hidden / heads.", minimum=0)
    ffn_hidden: int = setting(688, "Width of the gated feed-forward layer.", minimum=1)
    qkv_bias: bool = setting(False, "Biases of queries, keys and values (Qwen2).")
    qk_norm: bool = setting(False, "RMSNorm of each head's queries and keys, before the rotary positions (Qwen3).")
    tie_embeddings: bool = setting(True, "Share the input embedding with the output head.")
    rope_base: float = setting(10000.0, "Base period of the rotary positions.", minimum=1)
    rope_scaling: str = setting(
        "none",
        "Positions beyond those first trained on: all angles slower, or the slow ones (Llama 3.1).",
        choices=("none", "linear", "llama3"),
    )
    rope_factor: float = setting(8.0, "How much slower; of `linear` and `llama3`.", minimum=1)
    rope_low: float = setting(1.0, "Of `llama3`: turns in the first context below which an angle is slowed.", above=0)
    rope_high: float = setting(4.0, "Of `llama3`: turns above which it stays.", above=0)
    rope_context: int = setting(8192, "Of `llama3`: tokens of the first context.", minimum=1)
    norm_eps: float = setting(1e-5, "Epsilon of RMSNorm.", minimum=0)
    init_std: float = setting(0.02, "Standard deviation of the initial weights.", minimum=0)
    vocab_size: int = setting(0, "Rows of the embedding; 0 takes the tokenizer's size.", minimum=0)
    init_from: str | None = setting(None, "A checkpoint directory to take the weights from.")
    seed: int | None = setting(None, "Seed of the initial weights; the run's own if not given.")

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def query_width(self) -> int:
        """Width of all heads' queries, end to end."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Width of all heads' keys, or values, end to end."""
        return self.kv_heads * self.head_width

    def problems(self) -> Iterator[Problem]:
        if not self.head_dim and self.hidden % self.heads:
            fix = "or set head_dim"
            yield Problem("hidden", self.hidden, f"a multiple of heads ({self.heads})", fix)
        elif self.head_width % 2:
            name = "head_dim" if self.head_dim else "hidden"
            yield Problem(name, getattr(self, name), "an even width per head, for rotary positions")
        if self.qkv_bias and self.qk_norm:
            yield Problem("qk_norm", True, "false with qkv_bias: no family of models has both")
        if self.rope_scaling == "llama3" and self.rope_low >= self.rope_high:
            yield Problem("rope_low", self.rope_low, f"below rope_high ({self.rope_high})")
        if self.heads % self.kv_heads:
            yield Problem("kv_heads", self.kv_heads, f"a divisor of heads ({self.heads})")


@dataclass(kw_only=True, slots=True)
class ParallelSettings:
    """How the model is laid out over ranks; the rest of the world is data parallel."""

    tensor: int = setting(1, "Ranks that share each layer's matrices.", minimum=1)
    pipeline: int = setting(1, "Stages that share the layers.", minimum=1)
    sequence: bool = setting(False, "Shard norms and residuals along the tokens too (needs tensor > 1).")

    def problems(self) -> Iterator[Problem]:
        if self.sequence and self.tensor == 1:
            yield Problem("sequence", True, "false when tensor is 1", "set parallel.tensor above 1")


@dataclass(kw_only=True, slots=True)
class ZeroSettings:
    """DeepSpeed's partitioning of optimizer state, gradients and weights over data-parallel ranks."""

    stage: int = setting(1, "0 nothing, 1 optimizer state, 2 and gradients, 3 and weights.", choices=(0, 1, 2, 3))
    overlap_comm: bool = setting(
        False, "Reduce gradients while the backward pass still runs; needs memory for a second bucket."
    )


@dataclass(kw_only=True, slots=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule."""

    lr: float = setting(1.5e-3, "Peak learning rate.", minimum=0)
    min_lr_ratio: float = setting(0.05, "Learning rate at the end, as a share of the peak.", minimum=0, maximum=1)
    schedule: str = setting("cosine", "Shape after the warmup.", choices=("cosine", "linear", "wsd", "constant"))
    warmup: int = setting(60, "Steps of linear warmup.", minimum=0)
    decay_ratio: float = setting(0.2, "Share of the steps that decay, for wsd.", minimum=0, maximum=1)
    beta1: float = setting(0.9, "Adam's decay of the first moment.", minimum=0, below=1)
    beta2: float = setting(0.99, "Adam's decay of the second moment.", minimum=0, below=1)
    eps: float = setting(1e-8, "Adam's epsilon.", minimum=0)
    weight_decay: float = setting(0.1, "Decoupled weight decay.", minimum=0)
    no_decay: list[str] = setting(
        ["norms", "biases"],
        "What is not decayed; a tied head is the embedding.",
        choices=("norms", "biases", "embeddings", "head"),
    )
    clip: float = setting(1.0, "Largest norm of the gradient; 0 turns clipping off.", minimum=0)
    keep_moments: bool = setting(
        False, "Take Adam's moments and count of updates, too, from the checkpoint that model.init_from names."
    )

    renamed: ClassVar[dict[str, str]] = {"final_lr": "min_lr_ratio", "decay": "decay_ratio"}


@dataclass(kw_only=True, slots=True)
class TrainSettings:
    """How long and in what portions."""

    steps: int = setting(1200, "Steps of the learning-rate schedule.", minimum=1)
    hard_stop: int | None = setting(None, "Stop after this step and leave the schedule alone.", minimum=1)
    order_seed: int | None = setting(
        None, "Seed of the order in which sequences are trained on; the run's own if not given.", minimum=0
    )
    global_batch: int = setting(4, "Sequences a step, over all ranks.", minimum=1)
    micro_batch: int = setting(4, "Sequences a rank runs at once.", minimum=1)
    precision: str = setting("fp32", "Number format of the forward pass.", choices=("fp32", "bf16"))
    recompute: str = setting(
        "none", "Activations made again in the backward pass.", choices=("none", "selective", "full")
    )
    exclude: str | None = setting(
        None, "A file of passages that the stream leaves out: an id a line, or id<TAB>first<TAB>last step for a window."
    )
    skip: list[str] = setting(
        [], "Batches that the stream leaves out, counted from 0: [400-449]; batch n is that of step n + 1 otherwise."
    )
    z_loss: float = setting(
        0.0, "Weight of log(sum of exp(logits))^2, added to each token's loss; the metrics leave it out.", minimum=0
    )
    spike: float = setting(0.0, "Skip a step whose loss is above this multiple of its median; 0: never.", minimum=0)
    max_skips: int = setting(10, "Give up after this many skipped steps in a row.", minimum=1)
    threads: int = setting(0, "CPU threads a rank; 0 shares the cores out evenly.", minimum=0)
    gc_every: int = setting(
        0, "Steps between Python's looks for garbage, on all ranks at once; 0: when each process likes.", minimum=0
    )

    def problems(self) -> Iterator[Problem]:
        try:
            read_ranges(self.skip)
        except ValueError as error:
            yield Problem("skip", str(error), "first-last with first <= last, or one number")


@dataclass(kw_only=True, slots=True)
class ResumeSettings:
    """How a run goes on from its newest checkpoint."""

    allow: list[str] = setting(
        [], "Settings, or sections, that may differ from those of the checkpoint: [optimizer.lr]; noted in provenance."
    )
    every_byte: bool = setting(
        False, "Compare every byte of the checkpoint, also of files that have not changed since they were written."
    )


@dataclass(kw_only=True, slots=True)
class CheckpointSettings:
    """When weights and moments are written, and which are kept."""

    every: int = setting(0, "Steps between checkpoints; 0: only the fixed ones and the last.", minimum=0)
    keep: int = setting(2, "Newest periodic checkpoints that stay; 0 keeps all.", minimum=0)
    steps: list[int] = setting([], "Fixed steps, never pruned.", minimum=0)
    around_injections: bool = setting(False, "Also before and after each step that injects, never pruned.")
    asynchronous: bool = setting(False, "Write in the background while training goes on.")
    remote: str = setting("", "s3://BUCKET/PREFIX to send them to as well, in the background; empty: nowhere.")

    def problems(self) -> Iterator[Problem]:
        if self.remote and not re.fullmatch(r"s3://[^/]+/.*[^/]/?", self.remote):
            yield Problem("remote", self.remote, "s3://BUCKET/PREFIX, a prefix for each run")


@dataclass(kw_only=True, slots=True)
class ProbeSettings:
    """Prompts whose targets' log-probability is followed over training."""

    every: int = setting(50, "Steps between probes; 0: never.", minimum=0)
    steps: list[int] = setting([], "Further steps at which to probe.")
    batch_tokens: int = setting(2048, "Tokens a probe batch holds at most.", minimum=1)


@dataclass(kw_only=True, slots=True)
class ValidationSettings:
    """The loss on documents that are never trained on, source by source."""

    every: int = setting(
        100, "Steps between two looks; 0: never. Nothing is looked at without corpus.held_out.", minimum=0
    )
    sequences: int = setting(64, "Sequences of each source, at most; 0 takes all.", minimum=0)


@dataclass(kw_only=True, slots=True)
class CaptureSettings:
    """Gradient rows taken from the running backward pass."""

    enabled: bool = setting(False, "Take rows during training.")
    mode: str = setting(
        "mean", "An lr-weighted mean of unit rows per passage, or every visit.", choices=("mean", "visits")
    )
    correction: str = setting("none", "Optimizer correction.", choices=("none", "adam", "adafactor"))
    proj: int = setting(64, "Projected dimensions per side.", minimum=1)
    head: int = setting(0, "Those of the output head, as of index.projection.head; 0: no rows.", minimum=0)
    refresh: int = setting(10, "Steps between refreshes of the correction from the live moments.", minimum=1)
    curvature: str = setting(
        "kronecker", "Form of the index's curvature, as of index.curvature.kind.", choices=("kronecker", "full", "none")
    )
    damping: float | None = setting(
        None, "Added to its eigenvalues, as a multiple of their mean; by default .01, or .1 for full.", above=0
    )
    codecs: list[str] = setting(
        ["sign"],
        "How the index stores rows.",
        choices=CODEC_NAMES,
    )

    def problems(self) -> Iterator[Problem]:
        yield from wide_head_problems(self.head, "head", self.curvature, "curvature")


def wide_head_problems(head: int, key: str, curvature: str, kind_key: str) -> Iterator[Problem]:
    """What is said of a whole curvature that would be too large; of rows with `head` dimensions a side of the head."""
    if curvature == "full" and head > WIDEST_WHOLE:
        expected = f"at most {WIDEST_WHOLE} with {kind_key}=full, whose matrix of the head has head^4 numbers"
        yield Problem(key, head, expected, f"{key}=0, as the paper has it")


@dataclass(kw_only=True, slots=True)
class MetricsSettings:
    """What is logged."""

    every: int = setting(1, "Steps between lines of metrics.jsonl.", minimum=1)
    tensorboard: bool = setting(True, "Also write TensorBoard events.")
    wandb: str = setting("", "Project of Weights & Biases to show them in as well; empty: none.")
    peak_tflops: float = setting(0.0, "Peak of the device in TFLOP/s, for MFU; 0 leaves MFU out.", minimum=0)


@dataclass(kw_only=True, slots=True)
class StragglerSettings:
    """Which rank the others wait for; of several ranks alone."""

    every: int = setting(100, "Steps over which each rank's own time is taken; 0: never.", minimum=0)
    above: float = setting(1.5, "A rank that takes more than this multiple of the median is said aloud.", minimum=1)


@dataclass(kw_only=True, slots=True)
class ProfileSettings:
    """A window of steps that torch.profiler records; the trace lies under profile/ in the run."""

    steps: list[int] = setting([], "The first and the last step recorded: [10,12].", minimum=1)
    ranks: list[int] = setting([0], "Ranks that record.", minimum=0)

    def problems(self) -> Iterator[Problem]:
        if self.steps and (len(self.steps) != 2 or self.steps[0] > self.steps[1]):
            yield Problem("steps", self.steps, "two steps, the first and the last: [10,12]")


@dataclass(kw_only=True, slots=True)
class CallbackSettings:
    """Whatever looks on while the model trains."""

    probes: ProbeSettings = section(ProbeSettings)
    validation: ValidationSettings = section(ValidationSettings)
    metrics: MetricsSettings = section(MetricsSettings)
    stragglers: StragglerSettings = section(StragglerSettings)
    capture: CaptureSettings = section(CaptureSettings)
    extra: list[str] = setting(
        [], "Further callbacks, as module:function; each is called with the settings, the run and the world."
    )


@dataclass(kw_only=True, slots=True)
class PretrainSettings:
    """A whole pretraining run."""

    out: str = setting("runs/pretrain", "The run directory.")
    seed: int = setting(
        0, "Seed of weights, order, facts and schedule, unless model.seed, train.order_seed or facts.seed is given."
    )
    corpus: CorpusSettings = section(CorpusSettings)
    facts: FactsSettings = section(FactsSettings)
    model: ModelSettings = section(ModelSettings)
    parallel: ParallelSettings = section(ParallelSettings)
    zero: ZeroSettings = section(ZeroSettings)
    optimizer: OptimizerSettings = section(OptimizerSettings)
    train: TrainSettings = section(TrainSettings)
    checkpoint: CheckpointSettings = section(CheckpointSettings)
    resume: ResumeSettings = section(ResumeSettings)
    callbacks: CallbackSettings = section(CallbackSettings)
    profile: ProfileSettings = section(ProfileSettings)

    @property
    def order_seed(self) -> int:
        """The seed of the stream's order."""
        return self.seed if self.train.order_seed is None else self.train.order_seed

    def problems(self) -> Iterator[Problem]:
        heads, tensor, pipeline = self.model.kv_heads, self.parallel.tensor, self.parallel.pipeline
        if heads % tensor:
            yield Problem("parallel.tensor", tensor, f"a divisor of model.kv_heads ({heads})")
        if self.model.ffn_hidden % tensor:
            yield Problem("parallel.tensor", tensor, f"a divisor of model.ffn_hidden ({self.model.ffn_hidden})")
        if self.model.vocab_size % tensor:
            yield Problem("parallel.tensor", tensor, f"a divisor of model.vocab_size ({self.model.vocab_size})")
        if self.model.layers % pipeline:
            yield Problem("parallel.pipeline", pipeline, f"a divisor of model.layers ({self.model.layers})")
        if pipeline > 1 and self.zero.stage > 1:
            yield Problem("zero.stage", self.zero.stage, "0 or 1 when parallel.pipeline is above 1")
        if self.facts.planted and self.facts.schedule.start >= self.train.steps:
            start, stop = self.facts.schedule.start, self.train.steps
            yield Problem("facts.schedule.start", start, f"a step before the training's end (train.steps = {stop})")
        if self.optimizer.keep_moments and not self.model.init_from:
            yield Problem("optimizer.keep_moments", True, "a checkpoint to take them from", "set model.init_from")
        keys = [row.key for row in describe(PretrainSettings)]
        for name in self.resume.allow:
            if not any(key == name or key.startswith(f"{name}.") for key in keys):
                yield Problem("resume.allow", name, "a key of this configuration, such as optimizer.lr, or a section")
        if self.train.precision == "bf16" and self.zero.stage == 0:
            yield Problem("zero.stage", 0, "1, 2 or 3 with bf16, whose fp32 master weights ZeRO keeps")
        if self.profile.steps and self.profile.steps[0] > self.train.steps:
            yield Problem(
                "profile.steps", self.profile.steps, f"steps of the training (train.steps = {self.train.steps})"
            )
        if self.train.z_loss and self.callbacks.capture.enabled:
            fix = "captured rows are gradients of the loss that a trace takes, which has no such term"
            yield Problem("train.z_loss", self.train.z_loss, "0 with callbacks.capture.enabled", fix)
        if self.train.global_batch % self.train.micro_batch:
            yield Problem(
                "train.global_batch", self.train.global_batch, f"a multiple of micro_batch ({self.train.micro_batch})"
            )
        if self.parallel.sequence and self.train.micro_batch * self.corpus.seq_len % tensor:
            yield Problem("parallel.sequence", True, "micro_batch x seq_len divisible by parallel.tensor")
