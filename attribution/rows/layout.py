"""Which numbers of a gradient row belong to which module.

A row is float32 [D]: the projected gradients [kO, kI] of the modules, each flattened row-major, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from headwater.configs.errors import UserError
from headwater.train.artifacts import fingerprint


@dataclass(frozen=True, slots=True)
class ModuleSpan:
    """One module's place in a row.

    Attributes:
        name: the module's name in the model.
        k_out: projected output dimensions (kO).
        k_in: projected input dimensions (kI).
        start: its first number in the row.
    """

    name: str
    k_out: int
    k_in: int
    start: int

    @property
    def dims(self) -> int:
        return self.k_out * self.k_in

    @property
    def stop(self) -> int:
        return self.start + self.dims

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


class RowLayout:
    """The modules of a row, in order.

    Args:
        modules: (name, kO, kI) of each module.

    Raises:
        UserError: no modules, a name that appears twice, or a dimension below one.
    """

    def __init__(self, modules: Iterable[tuple[str, int, int]]) -> None:
        spans, start = [], 0
        for name, k_out, k_in in modules:
            if k_out < 1 or k_in < 1:
                raise UserError(
                    f"module {name} has no projected dimensions", got=(k_out, k_in), expected="at least 1 x 1"
                )
            spans.append(ModuleSpan(str(name), int(k_out), int(k_in), start))
            start = spans[-1].stop
        names = [span.name for span in spans]
        if not spans or len(set(names)) != len(names):
            raise UserError("a row layout needs at least one module, each named once", got=names)
        self.spans: tuple[ModuleSpan, ...] = tuple(spans)
        self.dims: int = start

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": span.name, "k_out": span.k_out, "k_in": span.k_in} for span in self.spans]

    @classmethod
    def from_json(cls, value: list[dict[str, Any]]) -> RowLayout:
        return cls((module["name"], module["k_out"], module["k_in"]) for module in value)

    def __iter__(self) -> Iterator[ModuleSpan]:
        return iter(self.spans)

    def __len__(self) -> int:
        return len(self.spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowLayout) and self.spans == other.spans

    def __hash__(self) -> int:
        return hash(self.spans)

    def __repr__(self) -> str:
        return f"RowLayout({len(self)} modules, {self.dims} dims)"
