"""Passages that are written down in a test instead of read from a corpus."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np


class WrittenPassages:
    """An `evaluation.ranking.Passages` in memory."""

    def __init__(self, names: Sequence[str], texts: Sequence[str] = ()) -> None:
        self.names, self.texts = list(names), list(texts)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def id_of(self, passage: int) -> str:
        return self.names[passage]

    def text(self, passage: int) -> str:
        return self.texts[passage]

    def ids_of(self, passages: Sequence[int] | np.ndarray) -> list[str]:
        return [self.names[int(number)] for number in passages]

    def found(self, ids: Collection[str]) -> dict[str, int]:
        return {name: self._numbers[name] for name in ids if name in self._numbers}

    def numbers(self, names: Iterable[str]) -> list[int]:
        return [self._numbers[name] for name in names]
