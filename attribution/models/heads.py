"""What a Hugging Face model makes of its hidden states: its own logits, whatever its family does to them.

Most families multiply with one matrix, and the loss is taken a chunk of tokens at a time without holding logits
(train/losses.py). Some scale them (Cohere, Granite), cap them (Gemma 2) or add a bias (Phi, GPT-J): there the model's
own code runs on the chunk, with a stand-in that hands it the hidden states in place of its body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from headwater.attribution.models.observing import Observed, arguments, closeness, relative
from headwater.configs.errors import UserError
from headwater.train.losses import head_loss

_CHUNK = 256
_SCALES = (0.0, 1.0, 30.0, 1000.0)
"""Sizes of the hidden states that a head is tried on: a cap shows only far out, a bias only near 0."""


class Head:
    """From hidden states to the loss of a model's own logits.

    Args:
        model: the causal language model.
        seen: a forward pass of it.

    Raises:
        UserError: the model's logits cannot be made from its hidden states.
    """

    def __init__(self, model: Any, seen: Observed) -> None:
        self.model, self.base, self._kind = model, seen.base, type(seen.output)
        states = hidden_states(seen.output)
        if states is None or states.shape[:2] != seen.logits.shape[:2]:
            raise self._refusal("it returns no hidden states of every token")
        states = states.detach().reshape(-1, states.shape[-1])
        self.weight = self._matrix(states)
        got = self.logits(states) if self.weight is None else states @ self.weight.t()
        difference = relative(got, seen.logits.reshape(len(states), -1))
        if difference > closeness(states.dtype):
            raise self._refusal(f"logits that differ by {difference:.2g} from the model's own")

    def _refusal(self, got: str) -> UserError:
        return UserError(
            f"{type(self.model).__name__} cannot be traced: how it makes logits of hidden states cannot be followed",
            got=got,
            expected="the logits of a forward pass of the whole model",
            fix="trace another model",
        )

    def _matrix(self, states_Kd: Tensor) -> nn.Parameter | None:
        """The head's weight, if the model's logits are a product with it and nothing else."""
        head = self.model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or weight.shape[1] != states_Kd.shape[1]:
            return None
        draw = torch.randn(4, states_Kd.shape[1], generator=torch.Generator().manual_seed(0)).to(states_Kd)
        for scale in _SCALES:
            got, expected = self.logits(draw * scale).float(), (draw * scale @ weight.t()).float()
            close = 1e-4 if draw.dtype == torch.float32 else 0.02
            if got.shape != expected.shape or not torch.allclose(got, expected, close, 1e-6 + 1e-4 * scale):
                return None
        return weight

    def logits(self, states_Kd: Tensor) -> Tensor:
        """The model's own logits [K, V] of hidden states, differentiable."""
        states_1Kd = states_Kd[None]
        stand_in = (states_1Kd,) if self._kind is tuple else self._kind(last_hidden_state=states_1Kd)
        ids_1K = torch.zeros(states_1Kd.shape[:2], dtype=torch.int64, device=states_Kd.device)
        try:
            with replaced(self.base, lambda *args, **kwargs: stand_in):
                found = self.model(**arguments(self.model, ids_1K)).logits
        except Exception as error:  # code of any family, run with a stand-in
            raise self._refusal(f"{type(error).__name__}: {error}") from error
        assert isinstance(found, Tensor)
        return found.squeeze(0)

    def backward(self, states_Kd: Tensor, labels_K: Tensor, weights_K: Tensor, kind: str) -> None:
        """Backward pass from the weighted sum of token losses.

        Args:
            states_Kd: hidden states of the places that predict a token with a loss, with their graph.
            labels_K: int64, those tokens.
            weights_K: float32, what each loss counts.
            kind: one of `train.losses.LOSSES`.
        """
        if self.weight is not None:
            total = head_loss(states_Kd, self.weight, labels_K, weights_K, kind=kind)[0]
            if total.requires_grad:  # the head's rows alone are made on the way
                total.backward()
            return
        gradient_Kd = torch.empty_like(states_Kd)
        for start in range(0, len(states_Kd), _CHUNK):
            part = slice(start, start + _CHUNK)
            leaf_Cd = states_Kd[part].detach().requires_grad_()
            loss_C = token_losses(self.logits(leaf_Cd).float(), labels_K[part], kind)
            (gradient_Kd[part],) = torch.autograd.grad((loss_C * weights_K[part]).sum(), leaf_Cd)
        states_Kd.backward(gradient_Kd)


def token_losses(logits_KV: Tensor, labels_K: Tensor, kind: str) -> Tensor:
    """The losses of `train.losses` by their definitions, float [K]."""
    own_K = logits_KV.gather(1, labels_K[:, None]).squeeze(1)
    others_KV = logits_KV.scatter(1, labels_K[:, None], float("-inf"))
    if kind == "margin":
        return others_KV.amax(dim=1) - own_K
    odds_K = torch.logsumexp(others_KV, dim=1) - own_K
    return softplus(odds_K) if kind == "cross_entropy" else odds_K


def hidden_states(output: Any) -> Tensor | None:
    """[B, L, d] of what a model's body returned."""
    states = getattr(output, "last_hidden_state", None)
    if states is None and isinstance(output, tuple) and output:
        states = output[0]
    return states if isinstance(states, Tensor) and states.ndim == 3 else None


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A module whose forward pass is another one."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
