"""What the ranks of `test_parallel` do: in a module of its own, so that other processes can find it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch.distributed as dist

from headwater.train import parallel


def work_alone(note: Path) -> None:
    """Rank 0 works for longer than a collective may take, first by `from_main`, then while the others are in one."""
    world = parallel.start(timeout_s=1)
    found = parallel.from_main(world, lambda: time.sleep(2.5) or 7)
    failed = False
    if world.is_main:
        time.sleep(2.5)
    else:
        try:
            dist.barrier()
        except RuntimeError:
            failed = True
        note.write_text(json.dumps([found, failed]))
    parallel.stop()
