"""What test_gloo.py runs on every rank."""

from __future__ import annotations

import json
import os
from pathlib import Path


def threads_of_a_job(out: Path) -> None:
    """Joins and leaves a job twice; writes how many threads that left beside those of the groups' own work."""
    import torch
    import torch.distributed.distributed_c10d as c10d

    from headwater.train import parallel

    counts = []
    for _ in range(2):
        before = len(os.listdir("/proc/self/task"))
        world = parallel.start(tensor=2)
        groups = len(c10d._world.pg_map)
        total = torch.ones(3)
        torch.distributed.all_reduce(total)
        counts.append([groups, len(os.listdir("/proc/self/task")) - before, float(total[0])])
        parallel.stop()
    if world.is_main:
        out.write_text(json.dumps(counts))
