"""The paper's advice: rewrite biographies, if only a part of them; those that were not rewritten gain too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.resampling import slope_weights
from headwater.launch.studies.storage.claims.ways import unknown
from headwater.launch.studies.storage.data import MAIN, PLAIN, rewritten_name
from headwater.launch.studies.storage.measured import RIGHT, SHUFFLED, Interval, Measured
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, shown

WAY = "full"
Among = Callable[[int, np.ndarray], np.ndarray]


def measure(measured: Measured) -> Found:
    """By share rewritten: answers about all asked people, about those rewritten and those not, and what the latter gain
    on the plain corpus; with the slope over the shares, of all asked people."""
    rows: dict[str, dict[str, Any]] = {}
    names = {0.0: PLAIN, **{share: rewritten_name(share) for share in sorted(measured.settings.rewritten)}, 1.0: MAIN}
    names = {share: name for share, name in names.items() if (name, WAY) in measured.answers}
    for share, name in names.items():
        own, rest = rewritten(measured, share, inside=True), rewritten(measured, share, inside=False)
        rows[name] = {
            "share": share,
            "all": measured.accuracy(name, WAY),
            "rewritten": measured.accuracy(name, WAY, among=own) if share > 0 else None,
            "others": measured.accuracy(name, WAY, among=rest) if share < 1 else None,
            "gain": {
                what: measured.difference((name, WAY), (PLAIN, WAY), what, rest) if 0 < share < 1 else None
                for what in (RIGHT, SHUFFLED)
            },
        }
    slopes = {what: slope(measured, names, what) for what in (RIGHT, SHUFFLED)}
    return {"rows": rows, "slope": slopes} if measured.settings.rewritten else {"rows": {}, "slope": {}}


def rewritten(measured: Measured, share: float, *, inside: bool) -> Among:
    """Which questions are about people whose biographies are rewritten, or about the others."""

    def among(seed: int, person_N: np.ndarray) -> np.ndarray:
        return np.isin(person_N, sorted(measured.populations[seed].rewritten(share))) == inside

    return among


def slope(measured: Measured, names: dict[float, str], what: str) -> Interval:
    found = measured.stacked([(name, WAY) for name in names.values()], what) if len(names) > 1 else None
    if found is None:
        return None
    values, people = found
    weights = slope_weights(list(names))
    return measured.interval([each @ weights for each in values], people)


def judge(summary: dict[str, Any]) -> list[Claim]:
    found = summary["measures"]["rewriting"]
    more, others = "The more biographies are rewritten, the more is answered", "Those not rewritten gain too"
    if not found["rows"] or found["slope"][RIGHT] is None:
        return [Claim(name, (NOT_TESTABLE, "not run")) for name in (more, others)]
    if reason := unknown(summary, list(found["rows"])):
        return [Claim(name, (NOT_TESTABLE, reason)) for name in (more, others)]
    slopes, rows = found["slope"], found["rows"]
    curve = ", ".join(f"{100 * row['share']:g}% {as_text(row['all'])}" for row in rows.values())
    rises = REPRODUCED if slopes[RIGHT][1] > 0 else NOT_REPRODUCED
    against = f"answers held against another person's: {as_text(slopes[SHUFFLED])}"
    rise = Claim(more, (rises, f"from none to all {shown(slopes[RIGHT])}; {curve}"), against, DIFFERS)
    parts = [row for row in rows.values() if row["gain"][RIGHT]]
    text = "; ".join(f"{100 * row['share']:g}% rewritten: {shown(row['gain'][RIGHT])}" for row in parts)
    control = "; ".join(f"{100 * row['share']:g}%: {as_text(row['gain'][SHUFFLED])}" for row in parts)
    value, other = parts[-1]["gain"][RIGHT], parts[-1]["gain"][SHUFFLED]
    by_chance = other is not None and other[1] > 0 and value[1] <= other[2]
    status = REPRODUCED if value[1] > 0 and not by_chance else NOT_REPRODUCED
    text += ", undecided: the interval holds zero" if value[1] <= 0 <= value[2] else ""
    text += ", but not above what is found for other people's values" if by_chance else ""
    against = f"answers held against another person's: {control}"
    return [rise, Claim(others, (status, text + "; judged at the largest share"), against, DIFFERS)]


DIFFERS = "the paper advises it and does not draw the curve; rewritten are people of both halves, with multi5+permute"
