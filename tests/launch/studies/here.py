"""A small corpus, and the parts of a study in the tests' own process.

It shows the same as a process for each part, at no start-up cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.launch.parts.part import Part
from headwater.train.artifacts import json_line, read_json, write_bytes

WORDS = ["river", "stone", "cloud", "ember", "willow", "harbor", "lantern", "meadow", "north", "city"]


def write_texts(path: Path) -> str:
    """Writes forty short documents; returns the override that makes them a pretraining's corpus."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(8, 30))) for _ in range(40)]
    lines = (json_line({"id": f"d{number}", "text": text}) for number, text in enumerate(texts))
    write_bytes(path, "".join(lines).encode())
    return f"corpus.sources=[{{kind: jsonl, path: '{path}'}}]"


Work = Callable[[Path, dict[str, Any]], int]


def finisher(work: Work, note: str = "part.json") -> Callable[[Sequence[Part], int, Callable[[str], None]], None]:
    """What stands in for `finish_parts`: does the parts one after the other, each after those that it needs.

    Args:
        note: the file that says what a part is.
    """

    def finish(parts: Sequence[Part], parallel: int, say: Callable[[str], None]) -> None:
        done = {part.name for part in parts if part.is_done()}
        for part in parts:
            if part.name in done:
                say(f"{part.name}: done before")
                continue
            assert done.issuperset(part.after), f"{part.name} comes before {part.after}"
            assert work(part.path, read_json(part.path / note)) == 0
            assert part.is_done(), f"{part.name} left nothing"
            done.add(part.name)

    return finish
