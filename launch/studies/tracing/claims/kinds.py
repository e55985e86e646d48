"""What kinds of passages are influential: many state the fact, others what is common to facts of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.tracing.classes import CLASSES, ENTAILING, NAMES, RELATION, SUBJECT, VALUE
from headwater.launch.studies.tracing.measured import Seed, interval_of
from headwater.launch.studies.tracing.settings import LABELS, METHODS, TRACED
from headwater.launch.studies.verdict import NOT_REPRODUCED, REPRODUCED, Verdict

RANKS = {"1": slice(0, 1), "2-3": slice(1, 3), "4-10": slice(3, 10)}
FIRST = slice(0, 10)
TERCILES = ("least known", "in between", "best known")
GROUPS = {
    "relation types": (RELATION,),
    "the answer itself": (VALUE,),
    "names": (SUBJECT, NAMES),
}
"""What the paper says that proponents support which do not state the fact."""


def measure(seeds: Sequence[Seed], place: tuple[str, int]) -> Found:
    """Shares of the kinds by method, by rank and by how well the fact is known; and the first ten of a method less
    those of a random ranking, question by question, of facts that were shown: sorted for what was asked, and, as the
    control, for what another question asks."""
    by_method = {method: shares(seeds, place, method, FIRST) for method in METHODS}
    by_rank = {
        method: {name: shares(seeds, place, method, at) for name, at in RANKS.items()} for method in (*TRACED, "bm25")
    }
    by_known = {
        method: {
            name: shares(seeds, place, method, FIRST, [terciles(each, place) == number for each in seeds])
            for number, name in enumerate(TERCILES)
        }
        for method in (*TRACED, "bm25")
    }
    above = {method: above_chance(seeds, place, method) for method in (*TRACED, "bm25")}
    control = {method: above_chance(seeds, place, method, another=True) for method in TRACED}
    return {"by_method": by_method, "by_rank": by_rank, "by_known": by_known, "above": above, "control": control}


def shares(
    seeds: Sequence[Seed],
    place: tuple[str, int],
    method: str,
    at: slice,
    among: Sequence[np.ndarray] | None = None,
) -> dict[str, list[float] | None]:
    """The share of each kind among a method's passages at some ranks.

    Args:
        among: of each seed, which of its questions count: bool [questions]; those about what was shown by default.
    """
    chosen = among if among is not None else [each.seen_Q for each in seeds]
    found = {}
    for number, name in enumerate(CLASSES):
        is_kind = [
            each.among((each.points[place].classes[method][:, at] == number).mean(axis=1), mask)
            for each, mask in zip(seeds, chosen, strict=True)
        ]
        found[name] = interval_of(seeds, is_kind)
    return found


def terciles(seed: Seed, place: tuple[str, int]) -> np.ndarray:
    """The third of its seed that each fact is in by the probability of the answer, 0 the least known; -1 of facts that
    were not shown: int [questions]."""
    found = np.full(len(seed.seen_Q), -1)
    seen = np.flatnonzero(seed.seen_Q)
    order = seen[np.argsort(seed.points[place].probability_Q[seen], kind="stable")]
    found[order] = np.arange(len(order)) * len(TERCILES) // max(1, len(order))
    return found


def above_chance(
    seeds: Sequence[Seed], place: tuple[str, int], method: str, *, another: bool = False
) -> Mapping[str, list[float] | None]:
    """A method's share of passages that state the fact, and of each group among those that do not, less the random
    ranking's first ten; questions all of whose passages state the fact have no value for the groups.

    Args:
        another: the passages are sorted for another question's fact.
    """
    entailing = CLASSES.index(ENTAILING)
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in (ENTAILING, *GROUPS)}
    for seed in seeds:
        point = seed.points[place]
        classes = point.classes_of_another if another else point.classes
        own, chance = classes[method][:, FIRST], classes["random"][:, FIRST]
        counts_Q = seed.seen_Q & (own[:, 0] >= 0)
        states_Q = (own == entailing).mean(axis=1) - (chance == entailing).mean(axis=1)
        gaps[ENTAILING].append(seed.among(states_Q, counts_Q))
        for name, group in GROUPS.items():
            gaps[name].append(seed.among(share_of_rest(own, group) - share_of_rest(chance, group), counts_Q))
    return {name: interval_of(seeds, values) for name, values in gaps.items()}


def share_of_rest(classes_QK: np.ndarray, group: Sequence[str]) -> np.ndarray:
    """Of each question's passages that do not state the fact, the share in a group: float64 [Q], NaN of none."""
    rest = classes_QK != CLASSES.index(ENTAILING)
    inside = np.isin(classes_QK, [CLASSES.index(name) for name in group])
    with np.errstate(invalid="ignore"):
        share: np.ndarray = inside.sum(axis=1) / rest.sum(axis=1)
    return share


def judge(found: Found) -> list[Claim]:
    claims = []
    for method in TRACED:
        label = LABELS[method] + ("" if method == "trackstar" else " (ours)")
        value, control = found["above"][method], found["control"][method]
        own = found["by_method"][method][ENTAILING]
        text = f"{as_text(own)} of the first ten, above chance by "
        claims.append(
            Claim(
                f"Many of the passages that {label} names state the fact",
                held_against(value[ENTAILING], control[ENTAILING], text if own else ""),
                as_control(control[ENTAILING]),
            )
        )
        for name in GROUPS:
            what = f"Of the others that {label} names, more than by chance support {name}"
            claims.append(Claim(what, held_against(value[name], control[name]), as_control(control[name])))
    return claims


def held_against(value: Sequence[float] | None, control: Sequence[float] | None, text: str = "") -> Verdict:
    """Reproduced if the interval lies above zero, and, where the control's does too, above the control's: a method that
    favours passages of some sort whatever is asked names more of a kind for any question."""
    status, measured = above_zero(value, text)
    if status == REPRODUCED and value and control and control[1] > 0 and value[1] <= control[2]:
        return NOT_REPRODUCED, f"{measured}, but not above what is found for another question's fact"
    return status, measured


def as_control(value: Sequence[float] | None) -> str:
    return f"the same passages sorted for another question's fact: {as_text(value)}"
