"""Which sequences of a batch the passages of a step are dealt to."""

from __future__ import annotations

from collections.abc import Sequence


def deal(lengths: Sequence[int], seq_len: int, batch: int, first: int = 0) -> list[int] | None:
    """Deals passages to the sequences of a batch in turn, each to the next that has room for it.

    Args:
        lengths: tokens of each passage.
        first: the sequence at which the turn begins.

    Returns:
        The batch index of each passage; None where one finds no room. As all sequences begin empty, whether there is
        room does not depend on `first`.
    """
    room, turn, dealt = [seq_len] * batch, first, []
    for length in lengths:
        index = next((i % batch for i in range(turn, turn + batch) if room[i % batch] >= length), None)
        if index is None:
            return None
        dealt.append(index)
        room[index] -= length
        turn = (index + 1) % batch
    return dealt
