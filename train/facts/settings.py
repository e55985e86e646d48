"""What of the planted facts can be configured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headwater.configs import section, setting
from headwater.configs.errors import Problem
from headwater.train.facts.elements import ELEMENTS


@dataclass(kw_only=True, slots=True)
class ScheduleSettings:
    """When the invented passages are put into the stream.

    `uniform`: every passage `count` times, spread at random over the steps. The others follow Chang et al. 2024: at
    steps start, start + interval, ... each person is met `count` times, by the same passage (`duplicate`) or by
    another one each time (`paraphrase`); `once` meets each person once, at `start`.
    """

    kind: str = setting("uniform", "How visits are laid out.", choices=("uniform", "duplicate", "paraphrase", "once"))
    start: int = setting(0, "First step with an injection.", minimum=0)
    interval: int = setting(100, "Steps between a person's visits; unused by `uniform` and `once`.", minimum=1)
    count: int = setting(7, "Visits of a passage (uniform) or of a person (duplicate, paraphrase).", minimum=1)
    stop: int = setting(0, "Injections of `uniform` end before this step; 0: the training's last.", minimum=0)

    def problems(self) -> Iterator[Problem]:
        if self.stop and self.stop <= self.start:
            yield Problem("stop", self.stop, f"a step after start = {self.start}, or 0")


@dataclass(kw_only=True, slots=True)
class FactsSettings:
    """What is planted, the passages that state it, and the probes that ask for it: facts about invented people, and
    real ones, of countries and of chemical elements."""

    people: int = setting(100, "Invented people who are asked about; 0 plants none.", minimum=0)
    countries: int = setting(0, "Countries whose capitals, as the Factbook gives them, are asked for.", minimum=0)
    elements: int = setting(0, "Chemical elements whose atomic numbers and symbols are asked for.", minimum=0)
    distractors: int = setting(
        10, "Further people (they share names' parts and values), countries and elements, not asked about.", minimum=0
    )
    passages: int = setting(
        12,
        "Passages per person, each stating half of the six attributes; even. A real fact has half as many of its own.",
        minimum=2,
        maximum=20,
    )
    queries: int = setting(2, "Facts asked per person; of countries and elements all are.", minimum=1, maximum=6)
    seed: int | None = setting(
        None, "Seed of the people, real facts, passages and schedule; the run's own if not given.", minimum=0
    )
    schedule: ScheduleSettings = section(ScheduleSettings)

    def problems(self) -> Iterator[Problem]:
        if self.passages % 2:
            yield Problem("passages", self.passages, "an even number")
        most = len(ELEMENTS) - self.distractors
        if self.elements and self.elements > most:
            expected = f"at most {most}: there are {len(ELEMENTS)}, and facts.distractors takes {self.distractors}"
            yield Problem("elements", self.elements, expected)

    def seed_in(self, run_seed: int) -> int:
        """What facts and schedule are drawn by in a run of that seed."""
        return run_seed if self.seed is None else self.seed

    @property
    def planted(self) -> bool:
        """Whether anything is."""
        return bool(self.people or self.countries or self.elements)


@dataclass(kw_only=True, slots=True)
class PopulationSettings:
    """People with biographies, after Allen-Zhu and Li 2023: how many, and how many values there are to draw from."""

    people: int = setting(100_000, "People, each with a full name of its own.", minimum=4)
    first_names: int = setting(400, "First names.", minimum=1, maximum=4000)
    middle_names: int = setting(400, "Middle names.", minimum=1, maximum=4000)
    last_names: int = setting(1000, "Last names.", minimum=1, maximum=4000)
    years: int = setting(200, "Years of birth, from 1900.", minimum=1, maximum=1000)
    days: int = setting(28, "Days of a month on which people are born.", minimum=1, maximum=28)
    cities: int = setting(200, "Cities, in which people are born and employers sit.", minimum=2, maximum=202)
    universities: int = setting(300, "Universities.", minimum=2, maximum=300)
    majors: int = setting(100, "Majors.", minimum=2, maximum=100)
    employers: int = setting(
        263, "Employers; each sits in one city, which is where its people work.", minimum=2, maximum=265
    )
    wordings: int = setting(50, "Wordings of each attribute, of which a passage takes one.", minimum=5, maximum=50)

    def problems(self) -> Iterator[Problem]:
        names = self.first_names * self.middle_names * self.last_names
        if names < self.people:
            yield Problem("people", self.people, f"at most as many as there are names, {names}")
