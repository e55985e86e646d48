"""Larger batches forget more slowly, with as many injected sequences and with as large a share of them."""

from __future__ import annotations

from headwater.launch.studies.acquisition.conditions import Conditions, among, common_seeds, halves
from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED

KINDS = {"number": "as many injected sequences, as the paper has it", "share": "as large a share injected"}


def measure(conditions: Conditions) -> Found | None:
    """Of shown memorization probes: decay by batch, and how much lower it is than the base batch's, record by record;
    once with the number and once with the share of injected sequences fixed. The control: one half of the records
    against the other, within the base batch."""
    base = conditions.plain
    others = conditions.alike(batch=..., copies=1) + conditions.alike(batch=..., copies=...)
    if not others:
        return None
    rows: dict[str, object] = {}
    for each in others:
        kind = "share" if each.copies > 1 else "number"
        samples = [among(sample, None, "memorization") for sample in common_seeds(base, each)]
        rows[f"{each.batch}, {kind}"] = {
            "batch": each.batch,
            "kind": kind,
            "decay": conditions.interval(samples[1:], each.decay),
            "slower": conditions.interval(samples, lambda a, b, each=each: base.decay(a) - each.decay(b)),
            "jump": conditions.interval(
                samples, lambda a, b, each=each: float(each.mean_effect_P[b].mean() - base.mean_effect_P[a].mean())
            ),
        }
    mine = among(common_seeds(base)[0], None, "memorization")
    return {
        "batch": base.batch,
        "decay": conditions.interval([mine], base.decay),
        "rows": rows,
        "control": conditions.interval(halves(mine), lambda a, b: base.decay(a) - base.decay(b)),
    }


def judge(found: Found | None) -> list[Claim]:
    made = []
    for kind, words in KINDS.items():
        claim = f"A larger batch forgets more slowly: {words}"
        rows = [row for row in found["rows"].values() if row["kind"] == kind] if found else []
        if found is None or not rows:
            made.append(Claim(claim, (NOT_TESTABLE, "one batch size")))
            continue
        slower = [row["slower"] for row in rows]
        if any(each is None for each in slower):
            made.append(Claim(claim, (NOT_TESTABLE, "no probe gained enough")))
            continue
        status = REPRODUCED if all(each[1] > 0 for each in slower) else NOT_REPRODUCED
        undecided = ", undecided" if any(each[1] <= 0 <= each[2] for each in slower) else ""
        measured = f"batch {found['batch']}: decay {as_text(found['decay'])}" + "".join(
            f"; {row['batch']}: {as_text(row['decay'])}, lower by {as_text(row['slower'])}, "
            f"E higher by {as_text(row['jump'])}"
            for row in rows
        )
        control = f"base batch, one half of the records - the other: {as_text(found['control'])}"
        differs = "" if kind == "number" else "ours: a passage stands as often in the batch as that is larger"
        made.append(Claim(claim, (status, measured + undecided), control, differs))
    return made
