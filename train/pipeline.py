"""Megatron's pipeline schedule (one forward, one backward), for training, for attribution and for probes alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from headwater.train.model import Batch, PackedGPT
from headwater.train.without_cuda import megatron_context

LossOf = Callable[[Any], tuple[Any, dict[str, Any]]]
"""Of the last stage's output: what is differentiated, and figures to pass on (none)."""


def run_schedule(model: PackedGPT, batches: Sequence[Batch], loss_of: LossOf, *, forward_only: bool = False) -> None:
    """Runs micro-batches through all stages; every rank of the pipeline calls it with the same batches.

    What `loss_of` gives is divided by the number of micro-batches before it is differentiated.
    """
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    with megatron_context():
        get_forward_backward_func()(
            forward_step_func=lambda iterator, part: (part.run(next(iterator)), loss_of),
            data_iterator=iter(batches),
            model=model,
            num_microbatches=len(batches),
            seq_length=len(batches[0].tokens_T),
            micro_batch_size=1,
            forward_only=forward_only,
        )
