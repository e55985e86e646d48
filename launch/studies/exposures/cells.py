"""What is dropped: a fact of each person, in each window of steps, and which trainings drop which.

A cell is a fact and a window; dropping it takes the exposures of every passage that states the fact, at the steps of
the window, out of the stream. Several cells may share a training, of different people and one window (an early one
moves everybody's questions); some are dropped again alone, which shows whether they interfere. One training drops
nothing, as the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from headwater.attribution.tracing.queries import Query
from headwater.launch.studies.exposures.settings import (
    ExposuresSettings,
    cells_file,
    dropped_run,
    model_run,
    seed_path,
    window_steps,
)
from headwater.train.artifacts import read_json, write_bytes, write_json

NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Cell:
    """A fact's exposures in a window.

    probe: the number of the question that asks for it.
    subject: the person.
    first, last: the window's steps, from 1, both dropped.
    passages: ids of those that state it.
    """

    probe: int
    subject: str
    window: int
    first: int
    last: int
    passages: tuple[str, ...]

    @property
    def lines(self) -> str:
        """What train.exclude is given."""
        return "".join(f"{name}\t{self.first}\t{self.last}\n" for name in self.passages)


def training_names(settings: ExposuresSettings, people: int) -> list[str]:
    """The trainings of a seed that drop something, and the one that drops nothing."""
    groups = -(-people // settings.together)
    shared = [f"{number:03d}" for number in range(groups * settings.windows)]
    alone = min(settings.alone, people * settings.windows)
    return [*shared, *(f"alone-{number:03d}" for number in range(alone)), NOTHING]


def draw_cells(queries: Sequence[Query], settings: ExposuresSettings, steps: int, seed: int) -> dict[str, list[Cell]]:
    """The cells that each training drops. Every fact meets every window once in the shared ones.

    Args:
        queries: the run's probes, several a person.
        steps: of the training.
    """
    rng = np.random.default_rng([seed, 0xE4])
    asked: dict[str, list[int]] = {}
    for number, query in enumerate(queries):
        asked.setdefault(query.record["subject"], []).append(number)
    facts = [int(rng.choice(numbers)) for numbers in asked.values()]
    order = rng.permutation(facts).tolist()

    def cell(probe: int, window: int) -> Cell:
        query = queries[probe]
        return Cell(probe, query.record["subject"], window, *window_steps(window, settings.windows, steps), query.gold)

    names = training_names(settings, len(facts))
    groups = [order[start : start + settings.together] for start in range(0, len(order), settings.together)]
    shared = [[cell(probe, window) for probe in group] for group in groups for window in range(settings.windows)]
    every = [each for group in shared for each in group]
    alone = [[every[place]] for place in rng.permutation(len(every))[: settings.alone].tolist()]
    return dict(zip(names, [*shared, *alone, []], strict=True))


def write_cells(settings: ExposuresSettings, seed: int, queries: Sequence[Query], steps: int) -> None:
    """Writes cells.json and, into each training's directory, the list of what it drops."""
    home = seed_path(settings, seed)
    drawn = draw_cells(queries, settings, steps, seed)
    for name, cells in drawn.items():
        write_bytes(exclude_file(home, name), "".join(each.lines for each in cells).encode())
    write_json(cells_file(home), {name: [asdict(each) for each in cells] for name, cells in drawn.items()})


def read_cells(seed: Path) -> dict[str, list[Cell]]:
    """What `write_cells` wrote, by training."""
    kept = read_json(cells_file(seed))
    return {
        name: [Cell(**{**each, "passages": tuple(each["passages"])}) for each in cells] for name, cells in kept.items()
    }


def exclude_file(seed: Path, name: str) -> Path:
    return dropped_run(seed, name).path / "exclude.txt"


def queries_of(seed: Path) -> list[Query]:
    """The questions of a seed's model."""
    from headwater.attribution.tracing.queries import read_queries

    return read_queries(model_run(seed).facts / "probes.jsonl")
