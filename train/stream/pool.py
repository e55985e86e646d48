"""Runs the jobs of a build: in this process, or in a pool of processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

Job = Callable[..., None]


def run_jobs(job: Job, jobs: Iterable[tuple[Any, ...]], workers: int, engine: str = "processes") -> None:
    """Runs `job(*arguments)` for each of `jobs`, in any order; what they leave must not depend on it.

    Args:
        job: a function of a module, so that other processes can find it.
        jobs: arguments of each job; they are asked for as workers become free.
        workers: how many run at once.
        engine: `processes` on this machine, or `ray` on a cluster.
    """
    if engine == "ray":
        from headwater.train.stream.ray_pool import run_jobs_on_ray

        run_jobs_on_ray(job, jobs, workers)
    elif workers == 1:
        for arguments in jobs:
            job(*arguments)
    else:
        run_in_processes(job, jobs, workers)


def run_in_processes(job: Job, jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the pool is the parallelism
    # Spawned: a fork would inherit the threads of torch and of the tokenizer.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: list[Future[None]] = []
        for arguments in jobs:
            running.append(pool.submit(job, *arguments))
            if len(running) >= 2 * workers:
                running.pop(0).result()
        for future in running:
            future.result()
