"""Settings of the study of acquisition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headwater.configs import Problem, setting


@dataclass(kw_only=True, slots=True)
class AcquisitionSettings:
    """The study of acquisition: a base model, records, when they are shown, and where the model is probed."""

    out: str = setting("runs/study/acquisition", "Where the runs and the report go.")
    facts: str = setting("", "A file of the Fictional Knowledge format; empty invents records.")
    records: int = setting(32, "Records that are invented, or taken from the head of the file; 0 takes all.", minimum=0)
    control: int = setting(8, "Of these, records that are probed and never shown.", minimum=0)
    preset: str = setting("pretrain/demo", "The pretraining of the base model.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    run: str = setting("", "Instead: a finished run with checkpoints at `stages`; its own facts are shown no longer.")
    stages: list[int] = setting([300], "Steps of the base run at which the study begins.", minimum=1)
    seeds: list[int] = setting([0], "Of records, and of the base model unless `run` is given.", minimum=0)
    interval: int = setting(100, "Steps between injections.", minimum=1)
    count: int = setting(10, "Injections of a record (duplicate, paraphrase).", minimum=1)
    steps: int = setting(2500, "Steps of a run after its stage.", minimum=1)
    window: int = setting(50, "Steps after an injection in which its local maximum is sought.", minimum=1)
    probe_every: int = setting(1, "Steps between probes.", minimum=1)
    dense: int = setting(0, "Steps after each injection at which probes are taken every time.", minimum=0)
    minimum_gain: float = setting(
        0.1, "Least gain in nats for which the retained share of a probe is computed.", above=0
    )
    batches: list[int] = setting(
        [], "Further batch sizes, multiples of the preset's: each with as many injected, and with as large a share."
    )
    resamples: int = setting(1000, "Draws of records for the intervals.", minimum=10)
    ranks: int = setting(1, "Processes that train, through torchrun.", minimum=1)
    parallel: int = setting(1, "Parts that run at once, each on its share of the cores.", minimum=1)
    checkpoint_every: int = setting(100, "Steps between checkpoints of a run.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if self.window > self.interval:
            yield Problem(
                "window", self.window, f"at most interval = {self.interval}, or two injections share a maximum"
            )
        if self.last_injection + self.window >= self.steps:
            expected = f"more than the last injection and its window, {self.last_injection + self.window}"
            yield Problem("steps", self.steps, expected)
        if not self.stages or not self.seeds:
            yield Problem("stages", self.stages, "at least one stage and one seed")
        if not self.facts and self.records - self.control < 3:
            yield Problem("records", self.records, "at least three beyond control")

    @property
    def last_injection(self) -> int:
        return (self.count - 1) * self.interval
