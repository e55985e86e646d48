"""Random draws that every family of facts makes: generators, invented names, values spread evenly."""

from __future__ import annotations

import numpy as np

ONSETS = (
    "B",
    "D",
    "F",
    "G",
    "H",
    "K",
    "L",
    "M",
    "N",
    "P",
    "R",
    "S",
    "T",
    "V",
    "W",
    "Z",
    "Br",
    "Dr",
    "Gr",
    "Kl",
    "Pr",
    "St",
    "Tr",
)


VOWELS = ("a", "e", "i", "o", "u", "ae", "ei", "ou")


MIDDLES = ("l", "m", "n", "r", "v", "rd", "ld", "nt", "rv", "ss", "zz", "lb")


def generator(seed: int, *place: int) -> np.random.Generator:
    """A random generator for one purpose, independent of all others of the same seed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)))


def invented_names(count: int, endings: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """Distinct names of syllables."""
    names: dict[str, None] = {}
    while len(names) < count:
        onset, vowel, middle, ending = (
            each[int(rng.integers(len(each)))] for each in (ONSETS, VOWELS, MIDDLES, endings)
        )
        names[onset + vowel + middle + ending] = None
    return list(names)


def spread_values(values: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """`count` values, each value as often as any other (within one), in random order."""
    repeated = [values[place % len(values)] for place in range(count)]
    return [repeated[place] for place in rng.permutation(count).tolist()]
