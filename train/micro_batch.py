"""Sequences of the stream as the micro-batches that a model runs."""

from __future__ import annotations

import numpy as np
import torch

from headwater.train.model import Batch
from headwater.train.stream.stream import TrainingSequence


def pairs_of(sequence: TrainingSequence) -> int:
    """Pairs of a place and one that it attends to, itself included: within passages, backwards."""
    lengths = sequence.lengths.astype("int64")
    return int((lengths * (lengths + 1) // 2).sum())


def pack_sequences(sequences: list[TrainingSequence]) -> Batch:
    """Sequences end to end as one micro-batch; the padding of one is cut into segments no longer than its passages, so
    that it does not widen the attention."""
    lengths: list[int] = []
    counted: list[bool] = []
    longest = max(
        (int(each.lengths.max()) for each in sequences if len(each.lengths)), default=len(sequences[0].tokens)
    )
    for each in sequences:
        lengths += each.lengths.tolist()
        counted += [True] * len(each.lengths)
        rest = len(each.tokens) - int(each.lengths.sum())
        while rest:
            piece = min(rest, longest)
            lengths.append(piece)
            counted.append(False)
            rest -= piece
    tokens = torch.cat([torch.from_numpy(each.tokens) for each in sequences])
    batch = Batch.from_lengths(tokens, torch.tensor(lengths), torch.tensor(counted))
    if any(each.counted is not None for each in sequences):
        flags = [np.ones(len(each.tokens), bool) if each.counted is None else each.counted for each in sequences]
        # A token's weight stands where it is predicted: one place before it. What is rolled round has none anyhow.
        batch.weights_T *= torch.roll(torch.from_numpy(np.concatenate(flags)), -1)
    return batch
