"""Scores of passages as shares of an answer: what came from the person's own biographies, from others' questions, ...

A passage's share is its positive score over the sum of all positive scores, of the whole corpus or of the top
proponents; nobody's score counts against another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwater.launch.studies.resampling import over_seeds
from headwater.launch.studies.storage.data import Population
from headwater.train.facts.biographies import QuestionAnswer

KINDS = (
    "own biographies",
    "same question, same answer",
    "same question, other answer",
    "other questions",
    "biographies with the answer",
    "other biographies",
)
"""What a passage is to a question: of the person asked about; a question of the relation or another one about somebody
else; somebody else's biography."""
GROUPS = {
    "own biographies": KINDS[:1],
    "others' questions of the relation": KINDS[1:3],
    "the rest": KINDS[3:],
}


def kinds_of(
    questions: Sequence[QuestionAnswer],
    answers: Sequence[str],
    ids: Sequence[str],
    population: Population,
) -> np.ndarray:
    """What each passage is to each question: int [Q, N], places in `KINDS`."""
    owners = {each.document.removeprefix("person/"): each for each in population.people}
    asked = {each.id: each for each in population.questions(range(len(population.people)))}
    about = [owners[name.partition("/")[2].rpartition("#")[0]] for name in ids]
    kinds = np.empty((len(questions), len(ids)), dtype=np.int64)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        for place, (name, person) in enumerate(zip(ids, about, strict=True)):
            if name in asked:
                other = asked[name]
                same = other.attribute == question.attribute
                kind = 3 if not same else 1 if other.target == answer else 2
            elif person.number == question.person:
                kind = 0
            else:
                kind = 4 if person.values[question.attribute] == answer else 5
            kinds[row, place] = kind
    return kinds


def shares(scores_N: np.ndarray, kinds_N: np.ndarray, top: int) -> dict[str, Any]:
    """Shares of the positive scores by kind, of the whole and of the `top` best, and how many passages there are."""
    positive_N = np.maximum(scores_N, 0)
    best = np.argsort(-scores_N, kind="stable")[:top]

    def by_kind(chosen: np.ndarray) -> list[float]:
        mass = np.bincount(kinds_N[chosen], weights=positive_N[chosen], minlength=len(KINDS))
        return (mass / max(mass.sum(), 1e-30)).tolist()

    everything = np.arange(len(scores_N))
    own = np.flatnonzero(kinds_N == 0)
    ranks = np.argsort(np.argsort(-scores_N, kind="stable"), kind="stable")
    return {
        "top": by_kind(best),
        "all": by_kind(everything),
        "expected": (np.bincount(kinds_N, minlength=len(KINDS)) / len(kinds_N)).tolist(),
        "own_rank": int(ranks[own].min()) if len(own) else None,
    }


def summarise(traced: Sequence[dict[str, Any]], right: bool | None) -> dict[str, Any]:
    """Mean shares over questions (right ones, wrong ones, or all) of the traced runs, one a seed; with how many there
    are."""
    by_seed = [[row for row in each["questions"] if right is None or row["right"] == right] for each in traced]
    rows = [row for each in by_seed for row in each]
    if not rows:
        return {"questions": 0}
    made: dict[str, Any] = {"questions": len(rows)}
    for scope in ("top", "all", "expected"):
        mean = np.mean([row[scope] for row in rows], axis=0)
        made[scope] = {
            "kinds": dict(zip(KINDS, mean.tolist(), strict=True)),
            "groups": {
                name: float(sum(mean[KINDS.index(kind)] for kind in members)) for name, members in GROUPS.items()
            },
        }
    leads = [np.array([row["all"][0] - row["expected"][0] for row in each]) for each in by_seed]
    made["own_lead"] = over_seeds(leads, [np.array([row["person"] for row in each]) for each in by_seed])
    made["own_first"] = float(np.mean([row["own_rank"] == 0 for row in rows]))
    return made
