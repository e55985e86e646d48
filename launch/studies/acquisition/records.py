"""The records that a part of the study shows, and when."""

from __future__ import annotations

from typing import Any

from headwater.configs import UserError
from headwater.launch.studies.acquisition.parts import ContinuedPart
from headwater.launch.studies.acquisition.settings import AcquisitionSettings


def records_of(settings: AcquisitionSettings, part: ContinuedPart) -> tuple[Any, list[str], int, Any]:
    """Facts, the scenario of each record, probes left out, and the schedule in steps of the stream.

    Raises:
        MissingError, CorruptError: of the file of records.
        UserError: it holds fewer than are asked for.
    """
    import numpy as np

    from headwater.train.facts.fictional import (
        as_facts,
        assign_scenarios,
        fictional_schedule,
        make_records,
        read_records,
    )
    from headwater.train.facts.injection import Schedule

    wanted = settings.records
    records = read_records(settings.facts) if settings.facts else make_records(wanted, part.seed)
    if settings.facts and len(records) < wanted:
        raise UserError(
            f"{settings.facts} holds too few records",
            got=f"{len(records)}",
            expected=f"records = {wanted}",
            fix="set records=0 to take all",
        )
    records = records[:wanted] if wanted else records
    scenarios = assign_scenarios(records, settings.control)
    made, left_out = as_facts(records, scenarios)
    once = fictional_schedule(records, scenarios, start=part.stage, interval=settings.interval, count=settings.count)
    steps = np.repeat(once.steps, part.copies)
    ids = [each for each in once.passage_ids for _ in range(part.copies)]
    return made, scenarios, left_out, Schedule(steps, ids)
