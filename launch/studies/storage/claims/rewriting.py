"""The paper's advice: rewrite biographies, if only a part of them; those that were not rewritten gain too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.resampling import slope_weights
from headwater.launch.studies.storage.claims.ways import OTHERS, unknown
from headwater.launch.studies.storage.data import MAIN, PLAIN, rewritten_name
from headwater.launch.studies.storage.measured import RIGHT, SHUFFLED, Interval, Measured
from headwater.launch.studies.verdict import NOT_TESTABLE

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
    status, text = above_zero(slopes[RIGHT], "from none to all ", [slopes[SHUFFLED]], OTHERS)
    rise = Claim(more, (status, f"{text}; {curve}"), f"{AGAINST}: {as_text(slopes[SHUFFLED])}", DIFFERS)
    return [rise, spared(others, [row for row in rows.values() if row["gain"][RIGHT]])]


def spared(claim: str, rows: Sequence[dict[str, Any]]) -> Claim:
    """Of those who were not rewritten, judged at the largest share."""
    if not rows:
        return Claim(claim, (NOT_TESTABLE, f"{PLAIN} was not run"))
    verdicts = [
        above_zero(row["gain"][RIGHT], f"{100 * row['share']:g}% rewritten: ", [row["gain"][SHUFFLED]], OTHERS)
        for row in rows
    ]
    control = "; ".join(f"{100 * row['share']:g}%: {as_text(row['gain'][SHUFFLED])}" for row in rows)
    text = "; ".join(text for _, text in verdicts) + "; judged at the largest share"
    return Claim(claim, (verdicts[-1][0], text), f"{AGAINST}: {control}", DIFFERS)


AGAINST = "answers held against another person's"
DIFFERS = "the paper advises it and does not draw the curve; rewritten are people of both halves, with multi5+permute"
