"""Packing passages into sequences: whole, in nearly the order given, with little left empty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OPEN_SEQUENCES = 64
"""Sequences kept open; more of them fill better, and move passages farther from their place in the order."""


def pack(lengths: np.ndarray, seq_len: int, groups: Sequence[object] | None = None) -> list[list[int]]:
    """Best-fit packing with a bounded number of open sequences.

    Args:
        lengths: tokens of each passage, int [n], each between 1 and `seq_len`.
        seq_len: tokens that a sequence holds.
        groups: passages of one group are kept in different sequences; None lets any share one.

    Returns:
        The places (in `lengths`) of each sequence's passages; sequences in the order in which they were opened.

    Raises:
        ValueError: a passage is longer than a sequence.
    """
    if len(lengths) and int(lengths.max()) > seq_len:
        raise ValueError(f"a passage of {int(lengths.max())} tokens does not fit into a sequence of {seq_len}")
    sequences: list[list[int]] = []
    open_room: dict[int, int] = {}
    members: dict[int, set[object]] = {}
    for place, length in enumerate(lengths.tolist()):
        best, best_room = -1, seq_len + 1
        for sequence, room in open_room.items():
            if length <= room < best_room and (groups is None or groups[place] not in members[sequence]):
                best, best_room = sequence, room
        if best < 0:
            if len(open_room) == OPEN_SEQUENCES:
                fullest = min(open_room, key=lambda sequence: (open_room[sequence], sequence))
                del open_room[fullest]
                members.pop(fullest, None)
            best = len(sequences)
            sequences.append([])
            open_room[best] = seq_len
            members[best] = set()
        sequences[best].append(place)
        open_room[best] -= length
        if groups is not None:
            members[best].add(groups[place])
        if open_room[best] == 0:
            del open_room[best], members[best]
    return sequences
