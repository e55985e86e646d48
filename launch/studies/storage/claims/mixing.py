"""Questions mixed in early or late: the same number of them, in another stretch of the training."""

from __future__ import annotations

from typing import Any

from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.storage.claims.ways import OTHERS
from headwater.launch.studies.storage.measured import RIGHT, SHUFFLED, Measured
from headwater.launch.studies.storage.settings import WindowSettings
from headwater.launch.studies.verdict import NOT_TESTABLE


def measure(measured: Measured) -> Found:
    """By variant: answers of every stretch, of questions all the way and afterwards; and the earliest stretch less the
    latest one of the same length."""
    windows = sorted(measured.settings.windows, key=lambda each: (each.first, each.last))
    found: dict[str, Any] = {}
    for variant in measured.settings.windowed:
        rows = {}
        stretches = {each.label: (each.first, each.last) for each in windows} | {
            "mixed": (0.0, 1.0),
            "full": (1.0, 1.0),
        }
        for way, (first, last) in stretches.items():
            value = measured.accuracy(variant, way)
            if value is not None:
                rows[way] = {"first": first, "last": last, RIGHT: value}
        early, late = extremes(windows)
        gaps = {
            what: measured.difference((variant, early), (variant, late), what) if early != late else None
            for what in (RIGHT, SHUFFLED)
        }
        found[variant] = {"rows": rows, "compared": [early, late], "gaps": gaps}
    return found


def extremes(windows: list[WindowSettings]) -> tuple[str, str]:
    """Labels of the stretch that begins first and of the last one that is as long; alike where there is no other."""
    if not windows:
        return "", ""
    length = windows[0].last - windows[0].first
    alike = [each for each in windows if abs(each.last - each.first - length) < 1e-9]
    return alike[0].label, alike[-1].label


def judge(summary: dict[str, Any]) -> list[Claim]:
    found = summary["measures"]["mixing"]
    name = "Questions mixed in early give more than as many mixed in late"
    if not found:
        return [Claim(name, (NOT_TESTABLE, "not run"))]
    return [judged(f"{name} ({variant})", row) for variant, row in found.items()]


def judged(claim: str, row: dict[str, Any]) -> Claim:
    value, other = row["gaps"][RIGHT], row["gaps"][SHUFFLED]
    against = f"answers held against another person's: {as_text(other)}" if other else ""
    differs = (
        "a stretch of the steps instead of two stages; questions left out leave their places empty; the learning rate "
        "falls at the end"
    )
    if value is None:
        return Claim(claim, (NOT_TESTABLE, "no two stretches of one length"), against, differs)
    early, late = row["compared"]
    status, text = above_zero(value, f"{early}% of the steps less {late}%: ", [other], OTHERS)
    rows = ", ".join(f"{way} {as_text(each[RIGHT])}" for way, each in row["rows"].items())
    return Claim(claim, (status, f"{text}; {rows}"), against, differs)
