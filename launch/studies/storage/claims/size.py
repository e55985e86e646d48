"""From which size on P-probes show that with rich biographies attributes are known before the first value, and with
plain ones not."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.storage.claims.probes import ABSENT, READABLE, STANDS, at, due, early, gap, over
from headwater.launch.studies.storage.claims.ways import KNOWN
from headwater.launch.studies.storage.data import MAIN, PLAIN
from headwater.launch.studies.storage.measured import Measured
from headwater.launch.studies.storage.probes import AT_NAME, BEFORE_NAME
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED


def measure(measured: Measured) -> Found:
    """A row for each size and rank of the probe, in the order of the configuration."""
    rows = []
    for point in measured.settings.grid:
        ranks = sorted({rank for name, rank, _ in measured.grid if name == point.name})
        for rank in ranks:
            rich, plain = (measured.grid.get((point.name, rank, variant)) for variant in (MAIN, PLAIN))
            if not rich or not plain:
                continue
            name = at(AT_NAME)
            row = {
                "size": point.name,
                "rank": rank,
                "people": point.people or measured.settings.population.people,
                "told": {v: float(np.mean(measured.told.get((point.name, v), [np.nan]))) for v in (MAIN, PLAIN)},
                MAIN: over(measured, rich, early),
                PLAIN: over(measured, plain, early),
                "name": over(measured, rich, name),
                "due": over(measured, plain, due),
                "gap": gap(measured, rich, plain, early, early),
                "before": over(measured, rich, at(BEFORE_NAME)),
                "majority": float(np.mean([each.majority_A for each in rich.values()])),
            }
            rows.append({**row, "shows": shows(row)})
    return {"rows": rows}


def fair(row: dict[str, Any]) -> bool:
    """Whether the biographies are known, and the probe reads what is due of the plain ones."""
    return min(row["told"].values()) >= KNOWN and bool(row["due"]) and row["due"][0] >= READABLE


def shows(row: dict[str, Any]) -> bool:
    """Whether both intervals are on the paper's side, in a fair test."""
    return bool(fair(row) and row[MAIN][1] >= STANDS and row[PLAIN][2] <= ABSENT)


def judge(summary: dict[str, Any]) -> list[Claim]:
    """The first size, as configured, that shows it; the seeds of the search are not those of the other claims."""
    claim = (
        f"P-probes: from some size on, the attributes are known before the first value with {MAIN}, not with {PLAIN}"
    )
    rows = summary["measures"]["size"]["rows"]
    if not rows:
        return [Claim(claim, (NOT_TESTABLE, "not run"))]
    found = [row for row in rows if row["shows"]]
    status = REPRODUCED if found else NOT_REPRODUCED if any(fair(row) for row in rows) else NOT_TESTABLE
    if found:
        first = found[0]
        text = f"the smallest: {label(first)}, {as_text(first[MAIN])} against {as_text(first[PLAIN])}"
    else:
        first = max(rows, key=lambda row: row["gap"][0] if row["gap"] else -1.0)
        text = f"at none of {len(rows)}; the largest difference at {label(first)}, {as_text(first['gap'])}"
        text += f": {as_text(first[MAIN])} against {as_text(first[PLAIN])}"
    if status == NOT_TESTABLE:
        text += "; nowhere are the biographies known and read where they are due"
    control = f"{BEFORE_NAME}, there: {as_text(first['before'])}; commonest value {first['majority']:.1%}"
    differs = "searched on seeds of its own, one a size"
    return [Claim(claim, (status, text), control, differs)]


def label(row: dict[str, Any]) -> str:
    return f"{row['size']} (probe of rank {row['rank']})"
