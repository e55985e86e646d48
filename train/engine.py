"""The one place that meets DeepSpeed: optimizer step, data-parallel reduction, clipping, ZeRO.

Megatron owns the model and the pipeline schedule; its optimizer and DDP wrappers are not used, nor is DeepSpeed's
pipeline module. `state` and `load_state` speak of whole (tensor-parallel-local) fp32 tensors whatever the ZeRO stage.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headwater.train import parallel
from headwater.train.accumulation import Fp32Sum
from headwater.train.model import Batch, PackedGPT, tied_copy
from headwater.train.parallel import ModelParallelUnit, World, megatron_context
from headwater.train.settings import PretrainSettings

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
        if settings.parallel.sequence:
            _sum_over_tokens(model)
        copy = tied_copy(model)
        if copy is not None:  # counted on the first stage already, when the norm is summed over stages
            copy.ds_pipe_replicated = True  # type: ignore[attr-defined]
        optimizer = torch.optim.AdamW(
            _groups(model, settings.optimizer.weight_decay),
            lr=settings.optimizer.lr,
            betas=(settings.optimizer.beta1, settings.optimizer.beta2),
            eps=settings.optimizer.eps,
            fused=True,
        )
        accumulates_bf16 = settings.train.precision == "bf16" and self.micro_batches > 1
        self._fp32_by_deepspeed = accumulates_bf16 and settings.zero.stage >= 2
        self.deepspeed = _initialize(model, optimizer, self._config())
        _look_at_gradients_once(self.deepspeed.optimizer)
        self._sum = Fp32Sum(model.parameters()) if accumulates_bf16 and settings.zero.stage == 1 else None
        if settings.zero.stage == 3:
            import deepspeed

            # The head's weight is used by the model itself, outside the module that owns it.
            weight = model.embedding.word_embeddings.weight if model.tied else model.output_layer.weight
            deepspeed.zero.register_external_parameter(model, weight)

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
                "overlap_comm": False,
                "round_robin_gradients": False,
                # DeepSpeed allocates the bucket whole, whatever the model's size.
                "reduce_bucket_size": min(REDUCE_BUCKET, sum(p.numel() for p in self.model.parameters())),
            },
            "bf16": {"enabled": settings.train.precision == "bf16", "check_grad_overflow": True},
            **({"data_types": {"grad_accum_dtype": "fp32"}} if self._fp32_by_deepspeed else {}),
        }

    @property
    def updates(self) -> int:
        """Optimizer updates made; skipped steps are not among them."""
        return self._updates

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
            self._drop_gradients()
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
            self._drop_gradients()
            return StepResult(loss, tokens, float("nan"), skipped=True)
        self.deepspeed.step()
        if getattr(self.deepspeed.optimizer, "overflow", False):  # a gradient was not finite: DeepSpeed left it out
            return StepResult(loss, tokens, float("nan"), skipped=True)
        if self._updates == 0:
            self._link_moments()
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
            copied = getattr(parameter, "ds_pipe_replicated", False)
            if not copied and (parameter.tensor_model_parallel or first_tensor_rank):
                counted.append(parameter.grad)
        norms = torch._foreach_norm(counted) if counted else [torch.zeros((), device=self.world.device)]
        total = torch.stack(norms).double().square().sum()
        if self.world.tensor * self.world.pipeline > 1:
            dist.all_reduce(total, group=parallel.replica_group())
        norm, limit = float(total.sqrt()), self.settings.optimizer.clip
        if limit and limit < norm < math.inf:
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        return norm

    def _link_moments(self) -> None:
        """DeepSpeed links all groups' moments to their parameters after the first group's first update, when the other
        groups have none yet; once all have been updated it is told to link them again."""
        optimizer = self.deepspeed.optimizer
        if getattr(optimizer, "_hp_optimizer_states_linked", False):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

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
        from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

        total = torch.zeros((), device=self.world.device)

        def loss_of(output: Any) -> tuple[Tensor, dict[str, Tensor]]:
            total.add_(output[0].detach())
            # The schedule divides by the number of micro-batches.
            return output[0] * (scale * len(batches)), {}

        def forward_step(iterator: Iterator[Batch], model: PackedGPT) -> tuple[Any, Any]:
            return model.run(next(iterator)), loss_of

        self.deepspeed.set_gradient_accumulation_boundary(False)
        with megatron_context():
            get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=iter(batches),
                model=self.model,
                num_microbatches=len(batches),
                seq_length=len(batches[0].tokens_T),
                micro_batch_size=1,
                forward_only=False,
            )
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
        from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

        noted = torch.zeros(2, int((batch.weights_T != 0).sum()), device=self.world.device)

        def loss_of(output: Any) -> tuple[Tensor, dict[str, Tensor]]:
            noted.copy_(torch.stack([output[2], output[3].float()]))
            return output[0], {}

        with megatron_context():
            get_forward_backward_func()(
                forward_step_func=lambda iterator, model: (model.run(next(iterator)), loss_of),
                data_iterator=iter([batch]),
                model=self.model,
                num_microbatches=1,
                seq_length=len(batch.tokens_T),
                micro_batch_size=1,
                forward_only=True,
            )
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

    def _drop_gradients(self) -> None:
        optimizer = self.deepspeed.optimizer
        optimizer.zero_grad(set_to_none=True)
        if hasattr(optimizer, "averaged_gradients"):
            optimizer.averaged_gradients = {}
        # Counts the micro-batch without an update, so the next step starts an accumulation of its own.
        self.deepspeed.micro_steps += 1

    def state(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """Weights and moments of a parameter, fp32, this rank's tensor-parallel part. Collective over data parallel."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weight = safe_get_full_fp32_param(parameter)
        if weight is None:  # nothing is partitioned
            state = self.deepspeed.optimizer.state[parameter]
            return {"weight": parameter.detach().float(), **{name: state[name] for name in MOMENTS if name in state}}
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        found = {"weight": weight.detach().view(shape)}
        for name in MOMENTS if self._updates else ():
            found[name] = safe_get_full_optimizer_state(parameter, name).detach().view(shape)
        return found

    def load_state(self, parameter: torch.nn.Parameter, state: dict[str, Tensor]) -> None:
        """Puts back what `state` gave; the moments must exist (see `materialise_moments`)."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
            safe_set_full_fp32_param(parameter, state["weight"])
            for name in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[name], name)
        else:
            for name in MOMENTS:
                self.deepspeed.optimizer.state[parameter][name].copy_(state[name])
        if not hasattr(parameter, "ds_id"):
            parameter.data.copy_(state["weight"])

    def materialise_moments(self, batch: Batch) -> None:
        """Makes Adam's state exist by one step with learning rate 0, so that saved moments can be put in its place."""
        lrs = [group["lr"] for group in self.deepspeed.optimizer.param_groups]
        self.set_lr(0.0)
        self.step([batch] * self.micro_batches, tokens=1)
        for group, lr in zip(self.deepspeed.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    def set_steps(self, steps: int) -> None:
        """Sets Adam's count of updates, which its bias correction reads."""
        inner = getattr(self.deepspeed.optimizer, "optimizer", self.deepspeed.optimizer)
        for state in inner.state.values():
            if "step" in state:
                state["step"].fill_(steps)
        self._updates = steps


def _sum_over_tokens(model: PackedGPT) -> None:
    """Under sequence parallelism each rank's norms see a share of the tokens: their gradients are summed over ranks."""
    group = parallel.tensor_group()

    def summed(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total, group=group)
        return total

    for parameter in model.parameters():
        if getattr(parameter, "sequence_parallel", False):
            parameter.register_hook(summed)


def _look_at_gradients_once(optimizer: Any) -> None:
    """ZeRO reads all gradients to see whether each is finite, and then once more for their norm, of which it sees the
    same: where a gradient is not finite the norm is not, on every rank."""
    if not hasattr(optimizer, "check_overflow"):
        return

    def not_yet(*_: Any, **__: Any) -> None:
        optimizer.overflow = False

    optimizer.check_overflow = not_yet


def _groups(model: PackedGPT, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _initialize(model: PackedGPT, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    os.environ.setdefault("LOCAL_RANK", "0")  # a process on its own has no launcher that says so
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # DeepSpeed would compile a shared-memory extension here, for a minute, where gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, mpu=ModelParallelUnit, dist_init_required=False
    )
    return engine
