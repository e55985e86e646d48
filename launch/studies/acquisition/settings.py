"""Settings of the study of acquisition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headwater.configs import Problem, section, setting
from headwater.launch.studies.sizes import SizeSettings

SIZE = "base"
"""The size of the model that `pretrain` describes."""


@dataclass(kw_only=True, slots=True)
class PublishedSettings:
    """What is other where the records are those of a file: they are fewer, and many times as long."""

    records: int = setting(0, "Records that are taken, as many of each scenario; 0 takes all.", minimum=0)
    spread: int = setting(0, "As `spread`; 0: so many steps that each shows one record of a scenario.", minimum=0)
    seeds: list[int] = setting([], "Seeds of the base model and the order; none: `seeds`.", minimum=0)
    pretrain: list[str] = setting([], "Further key=value overrides of the base model's pretraining.")


@dataclass(kw_only=True, slots=True)
class SpacingSettings:
    """Facts that are met at intervals below and above the learnability threshold."""

    intervals: list[int] = setting([], "Steps between two meetings, of a group of records each; none: not run.")
    count: int = setting(4, "Meetings of a record; the last is followed by one more interval.", minimum=2)
    records: int = setting(12, "Records of each interval.", minimum=3)
    control: int = setting(8, "Records that are never shown.", minimum=1)

    @property
    def steps(self) -> int:
        """Of the whole part: the longest interval's meetings, and one more interval after the last."""
        return self.count * max(self.intervals, default=0) + self.shifts

    @property
    def shifts(self) -> int:
        """Steps over which the records of an interval are dealt out."""
        return min([self.records, *self.intervals])

    def problems(self) -> Iterator[Problem]:
        if self.intervals and (len(self.intervals) < 2 or self.intervals != sorted(set(self.intervals))):
            yield Problem("intervals", self.intervals, "none, or at least two, rising")


@dataclass(kw_only=True, slots=True)
class PopularitySettings:
    """Facts of unequal popularity, in a corpus that repeats passages and in one that does not."""

    meetings: list[int] = setting([], "How often facts are met, a group of records each; none: not run.", minimum=1)
    records: int = setting(8, "Records of each popularity.", minimum=3)
    control: int = setting(8, "Records that are never shown.", minimum=1)
    span: int = setting(400, "Steps over which the meetings are spread evenly.", minimum=1)
    after: int = setting(200, "Steps after these, without any.", minimum=1)

    @property
    def steps(self) -> int:
        return self.span + self.after

    def problems(self) -> Iterator[Problem]:
        if self.meetings and (len(self.meetings) < 2 or self.meetings != sorted(set(self.meetings))):
            yield Problem("meetings", self.meetings, "none, or at least two, rising")
        if max(self.meetings, default=0) > self.span:
            yield Problem("span", self.span, f"at least one step for each of {max(self.meetings)} meetings")


@dataclass(kw_only=True, slots=True)
class RealSettings:
    """The same on a real pretrained model: its weights, without optimizer state, go on from there."""

    preset: str = setting("study/pretrained-base", "The pretraining configuration; the shape is the model's.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    seeds: list[int] = setting([0], "Of records, and of the order of the corpus.", minimum=0)
    records: int = setting(14, "Records that are invented.", minimum=3)
    control: int = setting(2, "Of these, records that are probed and never shown.", minimum=0)
    interval: int = setting(20, "Steps between injections.", minimum=1)
    count: int = setting(4, "Injections of a record (duplicate, paraphrase).", minimum=1)
    spread: int = setting(1, "Steps over which the records of a scenario are dealt out.", minimum=1)
    window: int = setting(20, "Steps after an injection in which its local maximum is sought.", minimum=1)
    steps: int = setting(200, "Steps in all.", minimum=1)
    probe_every: int = setting(5, "Steps between probes.", minimum=1)
    dense: int = setting(2, "Steps after each injection at which probes are taken every time.", minimum=0)

    def problems(self) -> Iterator[Problem]:
        yield from schedule_problems(self)


@dataclass(kw_only=True, slots=True)
class AcquisitionSettings:
    """The study of acquisition: a base model, records, when they are shown, and where the model is probed."""

    out: str = setting("runs/study/acquisition", "Where the runs and the report go.")
    facts: str = setting("", "A file of the Fictional Knowledge format; empty invents records.")
    records: int = setting(32, "Records that are invented.", minimum=3)
    control: int = setting(
        8, "Of these, records that are probed and never shown; a file that leaves none over has so many invented."
    )
    familiar: int = setting(
        0,
        "Further invented records, of other names, in the base model's corpus: it knows their form before it meets the "
        "study's, so that what these teach is their facts. Not with `run` or `facts`.",
        minimum=0,
    )
    published: PublishedSettings = section(PublishedSettings)
    preset: str = setting("pretrain/demo", "The pretraining of the base model.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    run: str = setting("", "Instead: a finished run with checkpoints at `stages`; its own facts are shown no longer.")
    stages: list[int] = setting(
        [300], "Steps of the base run at which the study begins; the first is that of all other comparisons.", minimum=1
    )
    seeds: list[int] = setting([0], "Of records, and of the base model unless `run` is given.", minimum=0)
    part_seeds: int = setting(
        0, "So many of the seeds, the first, have the further parts (stages, batches, sizes, ...); 0: all.", minimum=0
    )
    interval: int = setting(100, "Steps between injections.", minimum=1)
    count: int = setting(10, "Injections of a record (duplicate, paraphrase).", minimum=1)
    spread: int = setting(1, "Steps over which the records of a scenario are dealt out, evenly.", minimum=1)
    steps: int = setting(2500, "Steps of a run after its stage.", minimum=1)
    effect_steps: int = setting(
        0, "Of the runs that are compared by effectivity alone (further stages, sizes); 0: as many.", minimum=0
    )
    window: int = setting(50, "Steps after an injection in which its local maximum is sought.", minimum=1)
    probe_every: int = setting(1, "Steps between probes.", minimum=1)
    dense: int = setting(0, "Steps after each injection at which probes are taken every time.", minimum=0)
    minimum_gain: float = setting(
        0.1, "Least gain in nats for which the retained share of a probe is computed.", above=0
    )
    batches: list[int] = setting(
        [], "Further batch sizes, multiples of the preset's: each with as many injected, and with as large a share."
    )
    sizes: list[SizeSettings] = setting([], "Base models of further sizes, from small to large.")
    spacing: SpacingSettings = section(SpacingSettings)
    popularity: PopularitySettings = section(PopularitySettings)
    model: str = setting("", "A Llama directory of Hugging Face, or a .gguf file: the real model of `real`.")
    real: RealSettings = section(RealSettings)
    resamples: int = setting(1000, "Draws of seeds and records for the intervals.", minimum=10)
    ranks: int = setting(1, "Processes that train, through torchrun.", minimum=1)
    parallel: int = setting(1, "Parts that run at once, each on its share of the cores.", minimum=1)
    checkpoint_every: int = setting(100, "Steps between checkpoints of a run.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if not self.stages or not self.seeds:
            yield Problem("stages", self.stages, "at least one stage and one seed")
        if not self.facts and self.records - self.control < 3:
            yield Problem("records", self.records, "at least three beyond control")
        names = [each.name for each in self.sizes]
        if len({*names, SIZE, ""}) != len(names) + 2:
            yield Problem("sizes", names, f"a name for each, all different, none of them {SIZE}")
        if self.effect_steps and self.effect_steps <= self.last_injection + self.spread - 1 + self.window:
            yield Problem("effect_steps", self.effect_steps, "more than the last injection and its window, or 0")
        yield from schedule_problems(self)

    @property
    def used_seeds(self) -> list[int]:
        """The seeds of the study: a file's, if they are others."""
        return (self.facts and self.published.seeds) or self.seeds

    @property
    def used_familiar(self) -> int:
        """The further records that base models read: none where one is taken (`run`), so that those of other sizes know
        no more than it, or where the records are a file's."""
        return 0 if self.run or self.facts else self.familiar

    @property
    def last_injection(self) -> int:
        return (self.count - 1) * self.interval


def schedule_problems(settings: AcquisitionSettings | RealSettings) -> Iterator[Problem]:
    """Whether injections, their windows and what follows fit into one another."""
    if settings.window > settings.interval:
        expected = f"at most interval = {settings.interval}, or two injections share a maximum"
        yield Problem("window", settings.window, expected)
    last = (settings.count - 1) * settings.interval + settings.spread - 1
    if last + settings.window >= settings.steps:
        yield Problem("steps", settings.steps, f"more than the last injection and its window, {last + settings.window}")
