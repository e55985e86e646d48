"""What each rank does in test_failures: trains, and one rank's disk fails at one of its files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from headwater.train.callbacks.base import Callback, Training


class Stale(Callback):
    """Of a rank that is not the first: what it reads is gone."""

    name = "stale"

    def after_step(self, trainer: Training, step: int, sequences: list[Any], result: Any) -> None:
        if step == 3 and trainer.world.rank == 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/share/gone")


def stale(settings: Any, run: Any, world: Any) -> Callback:
    return Stale()


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
