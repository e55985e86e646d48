"""Passages that are written down in a test instead of read from a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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

    def find(self, passage_id: str) -> int | None:
        return self._numbers.get(passage_id)

    def numbers(self, names: Iterable[str]) -> list[int]:
        return [self._numbers[name] for name in names]
