"""Tail-patch: from the checkpoint, one training step on one passage; the rise of the target's probability, and of its
logarithm.

For each query the rise is meaned over its top passages (TrackStar, arXiv 2410.17413). The step is the passage's own
gradient, clipped as in training and divided by the root of Adam's second moment, at the learning rate that the run
ended with. Like the paper's Adafactor it has no first moment and no weight decay: those would move the model the same
way whatever the passage. It measures what a passage does to this model now: on an overlearnt model it rewards the local
step, so it is reported beside the other metrics, never alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headwater.attribution.models.base import Example
from headwater.attribution.models.headwater import HeadwaterModel, pack


class TailPatch:
    """One-step updates of a checkpoint's model, one passage at a time.

    Args:
        model: the checkpoint, on one process.
        lr: learning rate of the step; None takes the run's last.
    """

    def __init__(self, model: HeadwaterModel, lr: float | None = None) -> None:
        self.model, self.gpt = model, model.gpt
        meta = model.checkpoint.meta
        self.optimizer = meta["optimizer"]
        self.lr = meta["lr"] if lr is None else lr
        self.step = int(meta["updates"]) + 1
        self.gpt.requires_grad_(True)
        self.gpt.loss_kind = "cross_entropy"
        named = [(name, p) for name, p in self.gpt.named_parameters()]
        self.parameters = [p for _, p in named]
        # One flat buffer for weights and one for gradients: an update is then a few passes over memory.
        self.start = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.weights, self.gradients = self.start.clone(), torch.zeros_like(self.start)
        offset = 0
        for parameter in self.parameters:
            part = slice(offset, offset + parameter.numel())
            parameter.data = self.weights[part].view_as(parameter)
            parameter.grad = self.gradients[part].view_as(parameter)
            offset += parameter.numel()
        moments = [model.checkpoint.tensor("exp_avg_sq", name).reshape(-1) for name, _ in named]
        self.second = torch.cat(moments).to(self.start.device)

    def log_probabilities(self, prompts: Sequence[Example]) -> np.ndarray:
        """Log-probability of each prompt's whole target, nats: float64 [n]."""
        batch, _ = pack(prompts)
        with torch.no_grad():
            _, _, logprob_K, _ = self.gpt.run(batch.to(self.model.device))
        counts = [len(prompt.tokens) - prompt.target_start for prompt in prompts]
        owner_K = np.repeat(np.arange(len(prompts)), counts)
        return np.bincount(owner_K, logprob_K.double().cpu().numpy(), minlength=len(prompts))

    def update(self, passage: Example) -> None:
        """One step on the passage's mean token loss, from the checkpoint."""
        self.weights.copy_(self.start)
        self.gradients.zero_()
        batch, _ = pack([passage])
        (self.gpt.run(batch.to(self.model.device))[0] / (len(passage.tokens) - 1)).backward()
        clip = self.optimizer["clip"]
        if clip:
            self.gradients.mul_(min(1.0, clip / (float(self.gradients.norm()) + 1e-6)))
        beta2 = self.optimizer["beta2"]
        root = torch.mul(self.second, beta2).addcmul_(self.gradients, self.gradients, value=1 - beta2)
        root.div_(1 - beta2**self.step).sqrt_().add_(self.optimizer["eps"])
        self.weights.addcdiv_(self.gradients, root, value=-self.lr)

    def restore(self) -> None:
        self.weights.copy_(self.start)


@dataclass(frozen=True, slots=True)
class Rises:
    """Mean rise over a query's passages, by method: float64 [queries] each; the logarithm's in nats."""

    probability: dict[str, np.ndarray]
    log_probability: dict[str, np.ndarray]


def tail_patch(
    patch: TailPatch,
    prompts: Sequence[Example],
    chosen: Mapping[str, Sequence[Sequence[int]]],
    passages: Mapping[int, Example],
) -> Rises:
    """Mean rise of each query's target probability, and of its logarithm, over its passages, by method.

    Args:
        patch: the model.
        prompts: the queries, with the loss on their targets.
        chosen: method -> per query the passage numbers; 0 where there is none.
        passages: every passage that is named.
    """
    patch.restore()
    before = patch.log_probabilities(prompts)
    asked: dict[int, set[int]] = defaultdict(set)
    for lists in chosen.values():
        for query, numbers in enumerate(lists):
            for number in numbers:
                asked[number].add(query)
    rise: dict[tuple[int, int], tuple[float, float]] = {}
    # A step depends on the passage alone: each is made once, for all queries and methods that name it.
    for number, wanting in asked.items():
        patch.update(passages[number])
        order = sorted(wanting)
        after = patch.log_probabilities([prompts[query] for query in order])
        for query, log_p in zip(order, after.tolist(), strict=True):
            rise[number, query] = np.exp(log_p) - np.exp(before[query]), log_p - before[query]
    patch.restore()

    rises = Rises({}, {})
    for method, lists in chosen.items():
        means = [np.mean([rise[n, q] for n in ns], axis=0) if len(ns) else (0.0, 0.0) for q, ns in enumerate(lists)]
        rises.probability[method], rises.log_probability[method] = np.array(means).reshape(-1, 2).T
    return rises
