"""Runs the jobs of a build: in this process, in a pool of processes, or as tasks of a Ray cluster (extra `ray`).

ray start --head; headwater corpus CONFIG corpus.engine=ray corpus.workers=64     # on a file system that all share
"""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from headwater.configs.errors import MissingError
from headwater.train.lifetime import end_with

Job = Callable[..., None]


def run_jobs(job: Job, jobs: Iterable[tuple[Any, ...]], workers: int, engine: str = "processes") -> None:
    """Runs `job(*arguments)` for each of `jobs`, in any order; what they leave must not depend on it.

    Args:
        job: a function of a module, so that other processes can find it.
        jobs: arguments of each job; they are asked for as workers become free.
        workers: how many run at once.
        engine: `processes` on this machine, or `ray` on a cluster.

    Raises:
        ChildProcessError: a process was killed.
    """
    if engine == "ray":
        run_jobs_on_ray(job, jobs, workers)
    elif workers == 1:
        for arguments in jobs:
            job(*arguments)
    else:
        run_in_processes(job, jobs, workers)


def run_in_processes(job: Job, jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the pool is the parallelism
    # Spawned: a fork would inherit the threads of torch and of the tokenizer.
    context = multiprocessing.get_context("spawn")
    try:
        made = ProcessPoolExecutor(workers, context, initializer=end_with, initargs=(os.getpid(),))
    except OSError as error:  # it has semaphores there, and says no place
        raise OSError(error.errno, error.strerror, "/dev/shm") from None
    with made as pool:
        running: list[Future[None]] = []
        try:
            for arguments in jobs:
                running.append(pool.submit(job, *arguments))
                if len(running) >= 2 * workers:
                    running.pop(0).result()
            for future in running:
                future.result()
        except BrokenProcessPool:
            # Not a mistake of the user's: what is finished stays.
            raise ChildProcessError(
                errno.ECHILD,
                f"one of the {workers} processes that build the corpus was ended from outside;"
                " the kernel does so for want of memory (dmesg)",
            ) from None


def run_jobs_on_ray(job: Callable[..., None], jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    """Runs jobs as Ray tasks of one CPU each, at most `workers` at a time, on a running cluster or else a local one.

    Raises:
        MissingError: Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingError("Ray is not installed", fix="pip install 'headwater[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)  # joins the cluster of RAY_ADDRESS or `ray start`, else starts one here
    try:
        task = ray.remote(num_cpus=1)(job)
        running: list[Any] = []
        for arguments in jobs:
            if len(running) >= workers:
                done, running = ray.wait(running, num_returns=1)
                ray.get(done)
            running.append(task.remote(*arguments))
        ray.get(running)
    finally:
        if started:
            ray.shutdown()
