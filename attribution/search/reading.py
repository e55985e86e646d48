"""Stored rows, block after block: asked of the disk ahead, scored where the page cache has them, and let go of.

Shards are mapped, and no byte is copied: reading into buffers of one's own, by a thread that runs ahead, took twice the
processor's time of a scan. The kernel reads what was asked for while the blocks before are scored, over the ends of
files, and a block's pages leave the process when it is done: its memory is that of a block, whatever the shards' size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from headwater.attribution.index.reader import Index
from headwater.attribution.index.shards import ShardFile

AHEAD = 4
"""Blocks that the disk is asked for while one is scored."""

Block = tuple[int, int, list[dict[str, Tensor]]]
"""Passages [start, stop), and of each source its stored tensors."""


class _Mapped:
    """The shards of one index in one codec that some blocks lie in."""

    def __init__(self, index: Index, codec: str) -> None:
        self.index, self.codec = index, codec
        self._shards: dict[int, ShardFile] = {}

    def ask(self, start: int, stop: int) -> None:
        for number, low, high in self.index.pieces(start, stop):
            if number not in self._shards:
                self._shards[number] = self.index.shard(self.codec, number)
            self._shards[number].ask(low, high)

    def fields(self, start: int, stop: int) -> dict[str, Tensor]:
        parts = [self._shards[number].fields(low, high) for number, low, high in self.index.pieces(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def let_go(self, start: int, stop: int) -> None:
        for number, low, high in self.index.pieces(start, stop):
            self._shards[number].let_go(low, high)
            if high == self._shards[number].rows:
                del self._shards[number]


def read_ahead(sources: Sequence[tuple[Index, str]], pieces: Iterator[tuple[int, int]]) -> Iterator[Block]:
    """The stored rows of some pieces, in their order; a block's tensors last until the next one is asked for.

    Args:
        sources: indexes of the same passages, each in a codec.
        pieces: passages [start, stop), ascending, none empty.

    Raises:
        MissingShardError, TruncatedShardError, CorruptError: of a shard.
    """
    mapped = [_Mapped(index, codec) for index, codec in sources]
    asked: deque[tuple[int, int]] = deque()
    while True:
        while len(asked) <= AHEAD and (piece := next(pieces, None)) is not None:
            for each in mapped:
                each.ask(*piece)
            asked.append(piece)
        if not asked:
            return
        start, stop = asked.popleft()
        yield start, stop, [each.fields(start, stop) for each in mapped]
        for each in mapped:
            each.let_go(start, stop)


def moved_ahead(blocks: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """Blocks on their way to a GPU: a thread reads the next one into pinned memory while one is scored, and has it sent
    behind that one's products."""
    moved = (
        (start, stop, [{name: sent(each, device) for name, each in part.items()} for part in fields])
        for start, stop, fields in blocks
    )
    with ThreadPoolExecutor(1, thread_name_prefix="to-the-gpu") as sender:
        waiting = sender.submit(next, moved, None)
        while (block := waiting.result()) is not None:
            waiting = sender.submit(next, moved, None)
            yield block


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU, copied; the host does not wait until it is there."""
    return tensor.pin_memory().to(device, non_blocking=True)
