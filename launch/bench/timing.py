"""Ratios of times that another's load on the machine moves little: one thread, process time, variants taking turns."""

import time
from collections.abc import Callable, Mapping
from statistics import median


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Median seconds of each variant.

    Args:
        variants: what to time, by name. All are called once in every round, so that what slows the machine slows all.
        rounds: how often; one more round before it is not counted.
        clock: returns seconds. `time.process_time` counts this process alone, so hold PyTorch to one thread with it; a
            GPU needs a clock that synchronises.

    Returns:
        Seconds per call, by name.
    """
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for counted in range(-1, rounds):
        for name, call in variants.items():
            before = clock()
            call()
            if counted >= 0:
                samples[name].append(clock() - before)
    return {name: median(values) for name, values in samples.items()}
