"""The records that a part of the study shows, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headwater.configs import UserError
from headwater.launch.studies.acquisition.parts import COPIES, REAL, SCENARIOS, SPACING, ContinuedPart
from headwater.launch.studies.acquisition.settings import SIZE, AcquisitionSettings

if TYPE_CHECKING:
    from headwater.train.facts.fictional import Meeting, Record

CONTROL_SEED = 1_000_003
"""Added to a part's seed: invented controls beside the records of a file."""


@dataclass(frozen=True, slots=True)
class Grid:
    """When a part shows its records, and how long it goes on.

    Attributes:
        window: steps after an injection in which its local maximum is sought.
        steps: of the whole part, after its stage.
    """

    records: int
    control: int
    interval: int
    count: int
    spread: int
    window: int
    steps: int
    probe_every: int
    dense: int


def grid_of(settings: AcquisitionSettings, part: ContinuedPart) -> Grid:
    """The schedule of a part."""
    source: Any = settings.real if part.plan == REAL else settings
    names = ("records", "control", "interval", "count", "spread", "window", "probe_every", "dense")
    given = {name: getattr(source, name) for name in names}
    if part.plan == SPACING:
        steps = settings.spacing.steps
    elif part.plan == REAL:
        steps = settings.real.steps
    elif part.plan != SCENARIOS:
        steps = settings.popularity.steps
    else:
        further = part.size != SIZE or part.stage != settings.stages[0]
        steps = (settings.effect_steps if further else 0) or settings.steps
    return Grid(**given, steps=steps)


def records_of(settings: AcquisitionSettings, part: ContinuedPart) -> tuple[list[Record], list[Meeting]]:
    """What a part shows, and how each record is met, in steps after its stage.

    Raises:
        MissingError, CorruptError: of the file of records.
        UserError: it holds too few.
    """
    from headwater.train.facts.fictional import assign_scenarios, make_records, scenario_meetings

    grid = grid_of(settings, part)
    if part.plan == SPACING:
        return spaced(settings, part.seed)
    if part.plan not in (SCENARIOS, REAL):
        return popular(settings, part)
    spread = grid.spread
    if settings.facts and part.plan != REAL:
        records, scenarios = published(settings, part.seed)
        spread = settings.published.spread or max(scenarios.count(name) for name in set(scenarios) - {"control"})
    else:
        records = make_records(grid.records, part.seed)
        scenarios = assign_scenarios(records, grid.control)
    return records, scenario_meetings(scenarios, interval=grid.interval, count=grid.count, spread=spread)


def familiar_texts(settings: AcquisitionSettings, seed: int) -> list[str]:
    """What the base model of a seed reads of invented records: one text of each, in wordings taken in turn, and no
    name that a record of the study has."""
    from headwater.train.facts.fictional import make_records

    spacing, popularity = settings.spacing, settings.popularity
    most = max(
        settings.records,
        len(spacing.intervals) * spacing.records + spacing.control,
        len(popularity.meetings) * popularity.records + popularity.control,
    )
    # A seed's names are the same from the first on, however many are drawn: those after the study's are others.
    drawn = make_records(most + settings.familiar, seed)[most:]
    return [[record.text, *record.paraphrases][n % (1 + len(record.paraphrases))] for n, record in enumerate(drawn)]


def published(settings: AcquisitionSettings, seed: int) -> tuple[list[Record], list[str]]:
    """The records of the file with their scenarios; without any left over as control, invented ones are."""
    from headwater.train.facts import fictional
    from headwater.train.facts.fictional import assign_scenarios, make_records, read_records

    records, wanted = read_records(settings.facts), settings.published.records
    if len(records) < wanted:
        raise UserError(
            f"{settings.facts} holds too few records",
            got=f"{len(records)}",
            expected=f"published.records = {wanted}",
            fix="set published.records=0 to take all",
        )
    scenarios = assign_scenarios(records, settings.control)
    if wanted:
        each = -(-wanted // len(fictional.SCENARIOS if "control" in scenarios else fictional.SCENARIOS[:-1]))
        kept = [n for n, name in enumerate(scenarios) if scenarios[:n].count(name) < each]
        records, scenarios = [records[n] for n in kept], [scenarios[n] for n in kept]
    if "control" not in scenarios:
        records = [*records, *make_records(settings.control, seed + CONTROL_SEED)]
        scenarios = [*scenarios, *["control"] * settings.control]
    return records, scenarios


def spaced(settings: AcquisitionSettings, seed: int) -> tuple[list[Record], list[Meeting]]:
    """Groups of records that are met at other intervals, equally often, in other words each time.

    All groups are met for the last time at the same step, so that all have as far advanced a model before them; those
    of the shortest intervals begin last.
    """
    from headwater.train.facts.fictional import Meeting, make_records

    asked = settings.spacing
    meetings = []
    for interval in asked.intervals:
        last = (asked.count - 1) * asked.intervals[-1]
        for place in range(asked.records):
            shift = place % asked.shifts
            steps = tuple(last - turn * interval + shift for turn in reversed(range(asked.count)))
            meetings.append(Meeting(f"every {interval}", steps, True))
    meetings += [Meeting("control", ())] * asked.control
    return make_records(len(meetings), seed), meetings


def popular(settings: AcquisitionSettings, part: ContinuedPart) -> tuple[list[Record], list[Meeting]]:
    """Groups of records of other popularity, met at even distances; both corpora show the same at the same steps."""
    from headwater.train.facts.fictional import Meeting, make_records

    asked = settings.popularity
    meetings = []
    for times in asked.meetings:
        for place in range(asked.records):
            # Shifted within the distance of two meetings, so that a step shows few records.
            distance = asked.span / times
            shift = (place + 0.5) / asked.records
            steps = tuple(int((turn + shift) * distance) for turn in range(times))
            meetings.append(Meeting(f"met {times}", steps, part.plan != COPIES))
    meetings += [Meeting("control", ())] * asked.control
    return make_records(len(meetings), part.seed), meetings
