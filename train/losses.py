"""The output head and its loss in one pass, a chunk of tokens at a time: the whole batch's logits are never held.

Letters: T tokens that carry loss, C tokens of a chunk, d width, V rows of the vocabulary on this rank (a contiguous
slice under tensor parallelism, starting at `first_row`).

For a token with label y, let o = logsumexp of all other logits. Then -log p = softplus(o - z_y), and the log-odds
loss -log(p / (1 - p)) is o - z_y itself. Both have the gradient c (q - e_y), where q is the softmax over the other
tokens and c is 1 - p for the cross entropy and 1 for the log-odds: a token that is learnt keeps its gradient under
the latter. The margin loss, max of the others - z_y, puts all of q on the strongest rival.

The z-loss of PaLM (Chowdhery et al. 2022) adds z log(Z)^2 to the cross entropy, Z the sum of exp(logits); it keeps
the logits from drifting. Here it is in the gradient alone, 2 z log(Z) p: the loss returned is the cross entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LOSSES = ("cross_entropy", "log_odds", "margin")
_CHUNK = 1024
Watch = Callable[[slice, Tensor, Tensor], None]
_watches: list[Watch] = []


@contextmanager
def watched_head(seen: Watch) -> Iterator[None]:
    """Within it, `seen` is called with each chunk of a `head_loss` whose gradients are wanted (under `no_grad` none
    are): which of the T tokens it holds, their hidden states [C, d], and the gradient [C, V] of the weighted sum with
    respect to their logits on this rank."""
    _watches.append(seen)
    try:
        yield
    finally:
        _watches.remove(seen)


def head_loss(
    hidden_Td: Tensor,
    weight_Vd: Tensor,
    labels_T: Tensor,
    weights_T: Tensor,
    *,
    kind: str = "cross_entropy",
    group: dist.ProcessGroup | None = None,
    first_row: int = 0,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of each token and its weighted sum, with gradients for `hidden_Td` and `weight_Vd`.

    Args:
        hidden_Td: last hidden states, fp32 or bf16.
        weight_Vd: this rank's rows of the head.
        labels_T: int64, the token to predict at each place, a row number of the whole head.
        weights_T: float32, what each token's loss is multiplied by in the sum.
        kind: one of `LOSSES`.
        group: tensor-parallel group that shares the vocabulary; None when it is whole.
        first_row: the head's row that `weight_Vd` starts at.
        z_loss: weight of the z-loss in the gradient, of the cross entropy alone.

    Returns:
        (sum, loss_T, logprob_T, greedy_T): the weighted sum (differentiable), and float32, float32 and bool [T] without
        gradient: each token's loss, its log-probability, and whether it is the most likely token.
    """
    if kind not in LOSSES:
        raise ValueError(f"loss {kind!r}: expected one of {', '.join(LOSSES)}")
    if z_loss and kind != "cross_entropy":
        raise ValueError(f"loss {kind!r} has no z-loss: expected cross_entropy")
    watches = tuple(_watches)
    if not torch.is_grad_enabled():  # autograd would tell the function that its inputs want gradients all the same
        hidden_Td, weight_Vd, watches = hidden_Td.detach(), weight_Vd.detach(), ()
    return _HeadLoss.apply(hidden_Td, weight_Vd, labels_T, weights_T, kind, group, first_row, z_loss, watches)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_Td: Tensor,
        weight_Vd: Tensor,
        labels_T: Tensor,
        weights_T: Tensor,
        kind: str,
        group: dist.ProcessGroup | None,
        first_row: int,
        z_loss: float,
        watches: tuple[Watch, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_Td) if want_hidden else None
        grad_weight = torch.zeros_like(weight_Vd, dtype=torch.float32) if want_weight else None
        loss_T = torch.empty(len(labels_T), dtype=torch.float32, device=hidden_Td.device)
        logprob_T, greedy_T = torch.empty_like(loss_T), torch.empty_like(loss_T, dtype=torch.bool)
        for start in range(0, len(labels_T), _CHUNK):
            part = slice(start, start + _CHUNK)
            hidden_Cd = hidden_Td[part]
            loss_T[part], logprob_T[part], greedy_T[part], grad_CV = _chunk(
                hidden_Cd,
                weight_Vd,
                labels_T[part] - first_row,
                weights_T[part],
                kind,
                group,
                want_hidden or want_weight or bool(watches),
                z_loss,
            )
            if grad_CV is None:
                continue
            grad_CV = grad_CV.to(weight_Vd.dtype)
            for seen in watches:
                seen(part, hidden_Cd, grad_CV)
            if grad_hidden is not None:
                torch.mm(grad_CV, weight_Vd, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grad_CV.t() @ hidden_Cd
        if grad_hidden is not None and group is not None:
            dist.all_reduce(grad_hidden, group=group)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_Vd.dtype))
        ctx.mark_non_differentiable(loss_T, logprob_T, greedy_T)
        return (loss_T * weights_T).sum(), loss_T, logprob_T, greedy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * scale.to(grad_weight.dtype),
            *(None,) * 7,
        )


def _chunk(
    hidden_Cd: Tensor,
    weight_Vd: Tensor,
    labels_C: Tensor,
    weights_C: Tensor,
    kind: str,
    group: dist.ProcessGroup | None,
    want_grad: bool,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One chunk; labels are local row numbers, outside [0, V) when another rank holds them."""
    logits_CV = (hidden_Cd @ weight_Vd.t()).float()
    # No masks as indices: how many places they pick is known to the device alone, and the host would wait for it.
    here_C = (labels_C >= 0) & (labels_C < weight_Vd.shape[0])
    column_C1 = labels_C.clamp(0, weight_Vd.shape[0] - 1)[:, None]
    there_C = logits_CV.gather(1, column_C1).squeeze(1)
    own_C = there_C.where(here_C, 0.0)
    logits_CV.scatter_(1, column_C1, there_C.masked_fill(here_C, float("-inf"))[:, None])
    peak_C = logits_CV.amax(dim=1)
    if group is not None:
        dist.all_reduce(own_C, group=group)
        dist.all_reduce(peak_C, op=dist.ReduceOp.MAX, group=group)
    rival_CV = (logits_CV == peak_C[:, None]).float() if kind == "margin" else None
    others_CV = logits_CV.sub_(peak_C[:, None]).exp_()
    total_C = others_CV.sum(dim=1)
    if group is not None:
        dist.all_reduce(total_C, group=group)
    odds_C = peak_C + total_C.log() - own_C
    logprob_C = -torch.nn.functional.softplus(odds_C)
    loss_C = {"cross_entropy": -logprob_C, "log_odds": odds_C, "margin": peak_C - own_C}[kind]
    if not want_grad:
        return loss_C, logprob_C, own_C > peak_C, None
    pull_C = push_C = weights_C * torch.sigmoid(odds_C) if kind == "cross_entropy" else weights_C
    if z_loss:
        twice_C = 2 * z_loss * (own_C + torch.nn.functional.softplus(odds_C))  # 2 z log(Z)
        push_C = pull_C * (1 + twice_C)
        pull_C = pull_C - weights_C * twice_C * torch.sigmoid(-odds_C)
    if rival_CV is None:
        grad_CV = others_CV.mul_((push_C / total_C)[:, None])
    else:
        count_C = rival_CV.sum(dim=1)
        if group is not None:
            dist.all_reduce(count_C, group=group)
        grad_CV = rival_CV.mul_((pull_C / count_C)[:, None])
    there_C = grad_CV.gather(1, column_C1).squeeze(1)
    grad_CV.scatter_(1, column_C1, torch.where(here_C, -pull_C, there_C)[:, None])
    return loss_C, logprob_C, own_C > peak_C, grad_CV
