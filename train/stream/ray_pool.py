"""Runs the jobs of a build on a Ray cluster (extra `ray`); its nodes must share the file system that the run is on.

ray start --head; headwater corpus CONFIG corpus.engine=ray corpus.workers=64
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from headwater.configs.errors import MissingError


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
