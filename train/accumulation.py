"""Gradients of several micro-batches added up in fp32, where autograd would add them up in bf16.

Adding up n numbers of eight bits loses about sqrt(n) times what rounding their sum once does, and of small additions to
a large sum nothing arrives at all. ZeRO-2 and 3 keep their share of the sum in fp32 themselves; ZeRO-1 leaves the sum
to `parameter.grad`, which has the weights' format. Here the sum is kept beside it and put in its place, rounded once,
in the last backward pass of a step, before anybody reads it. While it is kept there is no other: 4 bytes a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Fp32Sum:
    """Watches the gradients of parameters.

    Args:
        parameters: each receives one gradient in every backward pass.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._micro_batches = 1
        self._sums: dict[torch.nn.Parameter, Tensor] = {}
        self._turns: dict[torch.nn.Parameter, int] = {}
        for parameter in parameters:
            parameter.register_hook(lambda gradient, parameter=parameter: self._add(parameter, gradient))
            parameter.register_post_accumulate_grad_hook(self._drop)

    def begin(self, micro_batches: int) -> None:
        """A step begins, of so many backward passes."""
        self._micro_batches = micro_batches
        self._sums.clear()
        self._turns.clear()

    def _add(self, parameter: torch.nn.Parameter, gradient: Tensor) -> Tensor:
        if self._micro_batches == 1:
            return gradient
        turn = self._turns[parameter] = self._turns.get(parameter, 0) + 1
        if turn == 1:
            self._sums[parameter] = gradient.float()
            return gradient
        total = self._sums[parameter].add_(gradient)
        if turn < self._micro_batches:
            return gradient
        del self._sums[parameter]
        return total.to(gradient.dtype)

    def _drop(self, parameter: torch.nn.Parameter) -> None:
        if self._turns.get(parameter, self._micro_batches) < self._micro_batches:
            parameter.grad = None
