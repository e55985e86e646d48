"""Which passages a half holds: a function of the seed and of the half's number alone."""

from __future__ import annotations

import numpy as np

HALVES = 0x4A1F
"""Keeps the draw of halves apart from others of the same seed."""


def draw_half(passages: int, number: int, seed: int) -> np.ndarray:
    """The passages of half `number`: bool [passages], exactly passages // 2 of them true.

    Each half is drawn by itself, so that a study which goes on with more models keeps those it has.
    """
    order = np.random.default_rng([seed, HALVES, number]).permutation(passages)
    inside_N = np.zeros(passages, dtype=bool)
    inside_N[order[: passages // 2]] = True
    return inside_N


def draw_halves(passages: int, models: int, seed: int) -> np.ndarray:
    """The first `models` halves: bool [models, passages]."""
    return np.stack([draw_half(passages, number, seed) for number in range(models)])
