"""What each rank does in test_failures: trains, and one rank's disk fails at one of its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def train(arguments: list[str], rank: int, file: str, number: int) -> int:
    """`python -m headwater.train` where rank `rank` meets error `number` at the checkpoint's files of this name."""
    from headwater.train import checkpoint_writer
    from headwater.train.__main__ import main

    def failing(write: Any) -> Any:
        def write_or_fail(path: Path, *rest: Any) -> None:
            if int(os.environ["RANK"]) == rank and file in str(path):
                raise OSError(number, os.strerror(number), str(path))
            write(path, *rest)

        return write_or_fail

    kept = checkpoint_writer.save_tensors, checkpoint_writer.write_json
    checkpoint_writer.save_tensors = failing(kept[0])
    checkpoint_writer.write_json = failing(kept[1])
    try:
        return main(arguments)
    finally:
        checkpoint_writer.save_tensors, checkpoint_writer.write_json = kept
