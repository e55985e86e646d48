"""Where attributes stand: with rich biographies on the name, with plain ones only where they are due."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.storage.claims.ways import unknown
from headwater.launch.studies.storage.data import MAIN, PLAIN
from headwater.launch.studies.storage.measured import Interval, Measured, Probed
from headwater.launch.studies.storage.probes import AT_NAME, BEFORE_NAME, PLACES
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, shown

STANDS, ABSENT = 0.6, 0.3
"""Accuracy at the name from which attributes stand on it, and up to which they do not."""
READABLE = 0.8
"""Accuracy just before an attribute's own value, which the model itself foresees there, from which a probe can be
believed where it finds nothing. It is that of plain biographies, whose order is one: where orders are many, a place's
classifier meets each attribute when it is due in a sixth of the texts alone."""
VARIANTS_TO_RANK = 4
SHUFFLES = 2_000

Seeds = Mapping[int, Probed]


def measure(measured: Measured) -> Found:
    """Accuracy by place, of models before and after training, and how probes and answers rank the variants."""
    return {
        "places": {name: by_place(measured, each) for name, each in measured.places.items()},
        "untrained": {name: by_place(measured, each) for name, each in measured.untrained_places.items()},
        "names": {name: overall(measured, each) for name, each in measured.names.items()},
        "untrained_names": {name: overall(measured, each) for name, each in measured.untrained_names.items()},
        "gaps": gaps(measured),
        "ranks": {
            "Q-probes": ranks(measured, measured.names, 0),
            "P-probes at the name": ranks(measured, measured.places, PLACES.index(AT_NAME)),
        },
    }


def people_of(seeds: Seeds) -> list[np.ndarray]:
    return [seeds[seed].person_P for seed in sorted(seeds)]


def over(measured: Measured, seeds: Seeds, of: Callable[[Probed], np.ndarray]) -> Interval:
    """Of a figure of each asked person."""
    return measured.interval([of(seeds[seed]) for seed in sorted(seeds)], people_of(seeds))


def at(place: str) -> Callable[[Probed], np.ndarray]:
    number = PLACES.index(place)
    return lambda each: each.right_PSA[:, number].mean(axis=1)


def due(each: Probed) -> np.ndarray:
    assert each.due_PA is not None, "of P-probes alone"
    mean: np.ndarray = each.due_PA.mean(axis=1)
    return mean


def early(each: Probed) -> np.ndarray:
    assert each.early_P is not None, "of P-probes alone"
    return each.early_P


SPOTS = {"before the first value": early, AT_NAME: at(AT_NAME)}
"""Where attributes are to be read early: at the paper's first place, all but the one that is due there; and at the
name itself."""


def by_place(measured: Measured, seeds: Seeds) -> dict[str, Any]:
    """Meaned over attributes, at each place and where an attribute is due; and by attribute, meaned over people."""
    return {
        "by_place": {place: over(measured, seeds, at(place)) for place in PLACES},
        "spots": {spot: over(measured, seeds, of) for spot, of in SPOTS.items()},
        "due": over(measured, seeds, due),
        "accuracy": np.mean([each.right_PSA.mean(axis=0) for each in seeds.values()], axis=0).tolist(),
        "majority": np.mean([each.majority_A for each in seeds.values()], axis=0).tolist(),
    }


def overall(measured: Measured, seeds: Seeds) -> Interval:
    return over(measured, seeds, lambda each: each.right_PSA[:, 0].mean(axis=1))


def gap(
    measured: Measured,
    one: Seeds | None,
    other: Seeds | None,
    of_one: Callable[[Probed], np.ndarray],
    of_other: Callable[[Probed], np.ndarray],
) -> Interval:
    """A figure of one less a figure of the other, person by person."""
    shared = sorted(set(one or {}) & set(other or {}))
    if not one or not other or not shared:
        return None
    values = [of_one(one[seed]) - of_other(other[seed]) for seed in shared]
    return measured.interval(values, [one[seed].person_P for seed in shared])


def gaps(measured: Measured) -> dict[str, Interval]:
    rich, poor = (measured.places.get(name) for name in (MAIN, PLAIN))
    raw_rich, raw_poor = (measured.untrained_places.get(name) for name in (MAIN, PLAIN))
    before = at(BEFORE_NAME)
    found = {BEFORE_NAME: gap(measured, rich, poor, before, before)}
    for spot, of in SPOTS.items():
        found |= {
            spot: gap(measured, rich, poor, of, of),
            f"{spot}, untrained": gap(measured, raw_rich, raw_poor, of, of),
            f"{spot}, {MAIN} - untrained": gap(measured, rich, raw_rich, of, of),
            f"{spot}, {PLAIN} - untrained": gap(measured, poor, raw_poor, of, of),
        }
    return found | {
        "late": gap(measured, poor, poor, due, early),
        "late, untrained": gap(measured, raw_poor, raw_poor, due, early),
    }


def ranks(measured: Measured, probed: Mapping[str, Seeds], place: int) -> dict[str, Any]:
    """Spearman's correlation over variants between accuracy of probes and of answers (fine-tuned, all weights), over
    the people of the seeds that have them all; and the same with the variants shuffled: [mean, 2.5%, 97.5%]."""
    names = [name for name in probed if (name, "full") in measured.answers]
    if len(names) < VARIANTS_TO_RANK:
        return {"variants": len(names), "value": None, "shuffled": None}
    rows = [measured.answers[name, "full"] for name in names]
    shared = sorted(set.intersection(*(set(each) for each in rows), *(set(probed[name]) for name in names)))
    values, people = [], []
    for seed in shared:
        person = probed[names[0]][seed].person_P
        columns = [probed[name][seed].right_PSA[:, place].mean(axis=1) for name in names]
        columns += [answered(row[seed].right_N, row[seed].person_N, person) for row in rows]
        values.append(np.stack(columns, axis=1))
        people.append(person)
    value = measured.interval(values, people, lambda mean: spearman(mean[..., : len(names)], mean[..., len(names) :]))
    if value is None:
        return {"variants": len(names), "value": None, "shuffled": None}
    means = np.concatenate(values).mean(axis=0)
    return {"variants": len(names), "value": value, "shuffled": by_chance(means[: len(names)], means[len(names) :])}


def answered(right_N: np.ndarray, person_N: np.ndarray, person_P: np.ndarray) -> np.ndarray:
    """Each person's share of right answers: float64 [P]."""
    return np.array([right_N[person_N == number].mean() for number in person_P])


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rank correlations along the last axis; NaN where one side is the same everywhere."""
    from scipy.stats import rankdata

    a, b = (rankdata(each, axis=-1) for each in (one, other))
    a, b = (each - each.mean(axis=-1, keepdims=True) for each in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return found


def by_chance(one: np.ndarray, other: np.ndarray) -> list[float]:
    """[mean, 2.5%, 97.5%] of the correlation when the variants of one side are shuffled."""
    rng = np.random.default_rng(0)
    drawn = rng.permuted(np.tile(other, (SHUFFLES, 1)), axis=1)
    found = spearman(np.broadcast_to(one, drawn.shape), drawn)
    return [float(found.mean()), *(float(each) for each in np.quantile(found, [0.025, 0.975]))]


def judge(summary: dict[str, Any]) -> list[Claim]:
    found = summary["measures"]["probes"]
    return [
        *(if_known(summary, stands(found, variant, spot), [variant]) for spot in SPOTS for variant in (MAIN, PLAIN)),
        *(if_known(summary, apart(found, spot), [MAIN, PLAIN]) for spot in SPOTS),
        if_known(summary, late(found), [PLAIN]),
        *(ranked_alike(name, each) for name, each in found["ranks"].items()),
    ]


def if_known(summary: dict[str, Any], claim: Claim, variants: Sequence[str]) -> Claim:
    """The claim; not testable where the biographies are not stored."""
    reason = unknown(summary, variants)
    return replace(claim, verdict=(NOT_TESTABLE, f"{claim.verdict[1]}; {reason}")) if reason else claim


def stands(found: Found, variant: str, spot: str) -> Claim:
    """With the rich variant at least `STANDS` at the spot, and above an untrained model; with the plain one at most
    `ABSENT`. That a probe finds nothing says nothing where such a probe cannot read what is due either."""
    rich = variant == MAIN
    words = f"{MAIN} the attributes are" if rich else f"{PLAIN} they are not"
    claim = f"P-probes: with {words} known {spot} ({'60% or more' if rich else '30% or less'})"
    row = found["places"].get(variant)
    if row is None:
        return Claim(claim, (NOT_TESTABLE, "not run"))
    value, above = row["spots"][spot], found["gaps"].get(f"{spot}, {variant} - untrained")
    text = f"{as_text(value)}, commonest value {np.mean(row['majority']):.1%}"
    text += f"; above an untrained model by {shown(above)}" if above else ""
    text += f"; where due {as_text(row['due'])}"
    text += f"; Q-probe {as_text(found['names'][variant])}" if found["names"].get(variant) else ""
    there, fine = value[1] >= STANDS, value[2] <= ABSENT
    if rich:
        fine = there and not (above and above[1] <= 0)
    status = REPRODUCED if fine else NOT_REPRODUCED
    if not there and found["places"].get(PLAIN, row)["due"][0] < READABLE:
        status, text = NOT_TESTABLE, f"{text}: the probe is too weak to find nothing"
    raw = found["untrained"].get(variant)
    against = f"{BEFORE_NAME}: {as_text(row['by_place'][BEFORE_NAME])}"
    against += f"; untrained, {spot}: {as_text(raw['spots'][spot])}" if raw else ""
    raw_name = found["untrained_names"].get(variant)
    against += f", Q-probe {as_text(raw_name)}" if raw_name else ""
    return Claim(claim, (status, text), against, "" if spot != AT_NAME else NOT_THEIRS)


NOT_THEIRS = "the paper's places are those before the values"


def apart(found: Found, spot: str) -> Claim:
    """The direction alone: more with the rich variant, by more than before the name or untrained."""
    claim = f"P-probes: {spot} {MAIN} gives more than {PLAIN}"
    value = found["gaps"].get(spot)
    controls = {name: found["gaps"].get(name) for name in (f"{spot}, untrained", BEFORE_NAME)}
    against = "; ".join(f"{name}: {as_text(each)}" for name, each in controls.items() if each)
    if value is None:
        return Claim(claim, (NOT_TESTABLE, "not run"), against)
    return Claim(claim, above_zero(value, controls=list(controls.values())), against)


def late(found: Found) -> Claim:
    """That the probe can read a plain biography at all, just before the value that is due."""
    claim = f"P-probes: with {PLAIN} an attribute is known just before its value, and not before the first one"
    value, raw = (found["gaps"].get(f"late{more}") for more in ("", ", untrained"))
    against = f"untrained: {as_text(raw)}" if raw else ""
    if value is None:
        return Claim(claim, (NOT_TESTABLE, "not run"), against)
    status, text = above_zero(value, controls=[raw])
    return Claim(claim, (status, f"{text}; due {as_text(found['places'][PLAIN]['due'])}"), against)


def ranked_alike(name: str, row: Mapping[str, Any]) -> Claim:
    claim = f"{name} and questions rank the variants alike"
    differs = "full fine-tuning for LoRA"
    if row["variants"] < VARIANTS_TO_RANK:
        return Claim(claim, (NOT_TESTABLE, "fewer than four variants"), differs=differs)
    if row["value"] is None:
        return Claim(claim, (NOT_TESTABLE, "all variants are alike"), differs=differs)
    value, chance = row["value"], row["shuffled"]
    text = f"Spearman {shown(value)} over {row['variants']} variants"
    status = REPRODUCED if value[1] > 0 and value[0] > chance[2] else NOT_REPRODUCED
    return Claim(claim, (status, text), f"variants shuffled: {as_text(chance)}", differs)
