"""A model in training: optimizer step, data-parallel reduction, clipping and ZeRO, by DeepSpeed (zero.py).

Megatron owns the model and the pipeline schedule; its optimizer and DDP wrappers are not used, nor is DeepSpeed's
pipeline module. `state` speaks of whole (tensor-parallel-local) fp32 tensors whatever the ZeRO stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headwater.train import parallel, zero
from headwater.train.accumulation import Fp32Sum
from headwater.train.model import EMBEDDING, HEAD, Batch, PackedGPT, tied_copy
from headwater.train.parallel import World
from headwater.train.pipeline import run_schedule
from headwater.train.settings import OptimizerSettings, PretrainSettings
from headwater.train.without_cuda import megatron_context

MOMENTS = ("exp_avg", "exp_avg_sq")
REDUCE_BUCKET = 500_000_000
"""Most numbers reduced at once."""


@dataclass(slots=True)
class StepResult:
    """What one optimizer step gave.

    Attributes:
        loss: mean over the tokens of the global batch that carry loss.
        tokens: how many those were.
        grad_norm: before clipping.
        skipped: whether the update was left out.
    """

    loss: float
    tokens: int
    grad_norm: float
    skipped: bool = False


class Engine:
    """A model under DeepSpeed.

    Args:
        model: this rank's part, on its device.
        settings: the run's.
        world: the process groups.
    """

    def __init__(self, model: PackedGPT, settings: PretrainSettings, world: World) -> None:
        self.model, self.settings, self.world = model, settings, world
        self._updates = 0
        # Where nothing is partitioned PyTorch's optimizer works on the parameters themselves: with one replica ZeRO
        # would copy every gradient and weight once more for nothing.
        alone = world.data == 1 and settings.zero.stage <= 2
        self.plain = settings.train.precision == "fp32" and (settings.zero.stage == 0 or alone)
        self.micro_batches = settings.train.global_batch // (settings.train.micro_batch * world.data)
        if world.tensor > 1:
            _sum_over_tensor(model)
        copy = tied_copy(model)
        if copy is not None:  # counted on the first stage already, when the norm is summed over stages
            zero.mark_copy(copy)
        optimizer = torch.optim.AdamW(
            _groups(model, settings.optimizer),
            lr=settings.optimizer.lr,
            betas=(settings.optimizer.beta1, settings.optimizer.beta2),
            eps=settings.optimizer.eps,
            fused=True,
        )
        accumulates_bf16 = settings.train.precision == "bf16" and self.micro_batches > 1
        self._fp32_by_deepspeed = accumulates_bf16 and settings.zero.stage >= 2
        self._sums_bf16_over_ranks = settings.train.precision == "bf16" and world.data > 1
        self.deepspeed = zero.initialize(model, optimizer, self._config())
        self._sum = Fp32Sum(model.parameters()) if accumulates_bf16 and settings.zero.stage == 1 else None
        if settings.zero.stage == 3:
            # The head's weight is used by the model itself, outside the module that owns it.
            weight = model.embedding.word_embeddings.weight if model.tied else model.output_layer.weight
            zero.use_outside(model, weight)

    def _config(self) -> dict[str, Any]:
        settings = self.settings
        # Under pipelining Megatron's schedule accumulates over micro-batches itself.
        accumulation = 1 if self.world.pipeline > 1 else self.micro_batches
        return {
            "train_micro_batch_size_per_gpu": settings.train.micro_batch,
            "gradient_accumulation_steps": accumulation,
            # DeepSpeed's own clipping of plain gradients leaves out the norms of later pipeline stages.
            "gradient_clipping": 0.0 if self.plain else settings.optimizer.clip,
            "steps_per_print": 1 << 30,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": 0 if self.plain else settings.zero.stage,
                "overlap_comm": settings.zero.overlap_comm,
                "round_robin_gradients": False,
                # It would replace F.linear for the whole process, and no layer of Megatron calls that.
                "memory_efficient_linear": False,
                # DeepSpeed allocates the bucket whole, whatever the model's size.
                "reduce_bucket_size": min(REDUCE_BUCKET, sum(p.numel() for p in self.model.parameters())),
            },
            "bf16": {"enabled": settings.train.precision == "bf16", "check_grad_overflow": True},
            **({"data_types": {"grad_accum_dtype": "fp32"}} if self._fp32_by_deepspeed else {}),
            # A sum of n numbers of eight bits would lose about sqrt(n) times what rounding it once does.
            **({"communication_data_type": "fp32"} if self._sums_bf16_over_ranks else {}),
        }

    @property
    def updates(self) -> int:
        """Optimizer updates made; skipped steps are not among them."""
        return self._updates

    @property
    def sums_gradients(self) -> bool:
        """Whether a weight's gradient in a step's last backward pass is, to hooks, the sum over all (accumulation)."""
        return self._sum is not None

    def set_lr(self, lr: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr

    def step(self, batches: Sequence[Batch], tokens: int, accept: Any = None) -> StepResult:
        """One optimizer step.

        Args:
            batches: this rank's micro-batches.
            tokens: tokens with loss in the global batch, over all ranks; the loss is their mean.
            accept: called with the global mean loss before the update; False leaves the update out.
        """
        # DeepSpeed averages over data-parallel ranks, so each rank's share of the mean is scaled up by their number.
        scale = self.world.data / max(tokens, 1)
        run = self._pipelined if self.world.pipeline > 1 else self._plain
        if self._sum is not None:
            self._sum.begin(len(batches))
        total = run(batches, scale)
        loss = self._mean_loss(total, tokens)
        if accept is not None and not accept(loss):
            zero.drop_gradients(self.deepspeed)
            return StepResult(loss, tokens, float("nan"), skipped=True)
        if self.world.pipeline > 1:
            self._reduce_tied()
            self.deepspeed.set_gradient_accumulation_boundary(True)
            if self.plain:
                self.deepspeed.allreduce_gradients()
            else:
                self.deepspeed.optimizer.reduce_gradients(pipeline_parallel=True)
        plain_norm = self._clip() if self.plain else None
        if plain_norm is not None and not math.isfinite(plain_norm):
            zero.drop_gradients(self.deepspeed)
            return StepResult(loss, tokens, float("nan"), skipped=True)
        self.deepspeed.step()
        if zero.overflowed(self.deepspeed):  # a gradient was not finite: DeepSpeed left it out
            return StepResult(loss, tokens, float("nan"), skipped=True)
        if self._updates == 0:
            zero.link_moments(self.deepspeed)
        self._updates += 1
        norm = plain_norm if plain_norm is not None else float(self.deepspeed.get_global_grad_norm())
        return StepResult(loss, tokens, norm)

    def _clip(self) -> float:
        """Clips gradients that nothing partitions; returns their norm before, over the whole model."""
        first_tensor_rank = parallel.tensor_rank() == 0
        gradients, counted = [], []
        for parameter in self.model.parameters():
            if parameter.grad is None:
                continue
            gradients.append(parameter.grad)
            if not zero.is_copy(parameter) and (parameter.tensor_model_parallel or first_tensor_rank):
                counted.append(parameter.grad)
        norms = torch._foreach_norm(counted) if counted else [torch.zeros((), device=self.world.device)]
        total = torch.stack(norms).double().square().sum()
        if self.world.tensor * self.world.pipeline > 1:
            dist.all_reduce(total, group=parallel.replica_group())
        norm, limit = float(total.sqrt()), self.settings.optimizer.clip
        if limit and limit < norm < math.inf:
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        return norm

    def _context(self) -> Any:
        names_cuda = self.settings.parallel.sequence or self.settings.train.recompute != "none"
        return megatron_context() if names_cuda else nullcontext()

    def _plain(self, batches: Sequence[Batch], scale: float) -> Tensor:
        total = torch.zeros((), device=self.world.device)
        for number, batch in enumerate(batches):
            with self._context():
                loss = self.deepspeed(**self.model.inputs(batch))[0]
                total += loss.detach()
                self.deepspeed.backward(loss * scale, scale_wrt_gas=False)
            if number < len(batches) - 1:
                self.deepspeed.step()  # not a boundary: counts the micro-batch
        return total

    def _pipelined(self, batches: Sequence[Batch], scale: float) -> Tensor:
        total = torch.zeros((), device=self.world.device)

        def loss_of(output: Any) -> tuple[Tensor, dict[str, Tensor]]:
            total.add_(output[0].detach())
            # The schedule divides by the number of micro-batches.
            return output[0] * (scale * len(batches)), {}

        self.deepspeed.set_gradient_accumulation_boundary(False)
        run_schedule(self.model, batches, loss_of)
        return total

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability (float32) and greedy match (bool) of each place that carries loss: [K], on every rank."""
        if self.world.pipeline == 1:
            with self._context():
                _, _, logprob_K, greedy_K = self.deepspeed(**self.model.inputs(batch))
            return logprob_K, greedy_K
        return self._evaluate_pipelined(batch)

    def _evaluate_pipelined(self, batch: Batch) -> tuple[Tensor, Tensor]:
        noted = torch.zeros(2, len(batch.places()), device=self.world.device)

        def loss_of(output: Any) -> tuple[Tensor, dict[str, Tensor]]:
            noted.copy_(torch.stack([output[2], output[3].float()]))
            return output[0], {}

        run_schedule(self.model, [batch], loss_of, forward_only=True)
        last = parallel.last_stage_rank()
        dist.broadcast(noted, last, group=parallel.pipeline_group())
        return noted[0], noted[1] > 0

    def _mean_loss(self, total: Tensor, tokens: int) -> float:
        if self.world.pipeline > 1:
            last = parallel.last_stage_rank()
            dist.broadcast(total, last, group=parallel.pipeline_group())
        dist.all_reduce(total, group=parallel.data_group())
        return float(total) / max(tokens, 1)

    def _reduce_tied(self) -> None:
        """Adds up the gradients of the two copies of a tied embedding, on the first and the last stage."""
        if not self.model.tied or not (self.world.first_stage or self.world.last_stage):
            return
        weight = self.model.shared_embedding_or_output_weight()
        gradient = weight.grad
        if gradient is None:
            raise RuntimeError("the tied embedding has no gradient to share between stages")
        dist.all_reduce(gradient, group=parallel.embedding_group())

    def state(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """Weights and moments of a parameter, fp32, this rank's tensor-parallel part. Collective over data parallel."""
        return zero.read_state(self.deepspeed, parameter, MOMENTS if self._updates else ())

    def second_moment(self, parameter: torch.nn.Parameter) -> Tensor:
        """Adam's second moment of a parameter, fp32, this rank's tensor-parallel part, after the first update.
        Collective over data parallel."""
        return zero.read_moment(self.deepspeed, parameter, MOMENTS[1])

    def load_kept(self, parameter: torch.nn.Parameter, state: dict[str, Tensor]) -> None:
        """Puts back weight and moments, flat fp32 on any device: those numbers that this rank keeps
        (`zero.kept_span`). The moments must exist (see `materialise_moments`), the weights be the model's already."""
        zero.write_kept(self.deepspeed, parameter, state)

    def materialise_moments(self, batch: Batch) -> None:
        """Makes Adam's state exist by one step with learning rate 0, so that saved moments can be put in its place."""
        lrs = [group["lr"] for group in self.deepspeed.optimizer.param_groups]
        self.set_lr(0.0)
        self.step([batch] * self.micro_batches, tokens=1)
        for group, lr in zip(self.deepspeed.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    def set_steps(self, steps: int) -> None:
        """Sets Adam's count of updates, which its bias correction reads."""
        zero.count_updates(self.deepspeed, steps)
        self._updates = steps


def _sum_over_tensor(model: PackedGPT) -> None:
    """Norms that see a share of the tokens on each rank (sequence parallelism), or of the heads (of queries and keys):
    their gradients are summed over ranks."""
    group = parallel.tensor_group()

    def summed(gradient: Tensor) -> Tensor:
        total = gradient.float() if gradient.dtype == torch.bfloat16 else gradient.clone()
        dist.all_reduce(total, group=group)
        return total.to(gradient.dtype)

    for parameter in model.parameters():
        if getattr(parameter, "sequence_parallel", False):
            parameter.register_hook(summed)


def _groups(model: PackedGPT, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Parameters that are decayed, and those that are not."""
    kinds = {parameter: kind_of(name, parameter.dim(), model.tied) for name, parameter in model.named_parameters()}
    decayed = [parameter for parameter, kind in kinds.items() if kind not in settings.no_decay]
    others = [parameter for parameter, kind in kinds.items() if kind in settings.no_decay]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def kind_of(name: str, dimensions: int, tied: bool) -> str:
    """What a parameter is to `optimizer.no_decay`: norms, biases, embeddings, head, or matrices of the blocks."""
    if dimensions == 1:
        return "biases" if name.endswith(".bias") else "norms"
    if name == EMBEDDING or (tied and name == HEAD):  # the last stage's copy of a tied embedding
        return "embeddings"
    return "head" if name == HEAD else "matrices"
