"""What test_gloo.py runs on every rank."""

from __future__ import annotations

import json
import os
from pathlib import Path


def threads_of_a_job(out: Path) -> None:
    """Joins a job; writes how many groups it has, how many threads came with them, and a sum over the ranks."""
    import torch
    import torch.distributed.distributed_c10d as c10d

    from headwater.train import parallel

    before = len(os.listdir("/proc/self/task"))
    world = parallel.start(tensor=2)
    total = torch.ones(3)
    torch.distributed.all_reduce(total)
    threads = len(os.listdir("/proc/self/task")) - before
    if world.is_main:
        out.write_text(json.dumps([len(c10d._world.pg_map), threads, float(total[0])]))
