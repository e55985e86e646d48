"""Every row of the paper's ablation, on a real pretrained model's run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headwater.launch.studies.claim import Claim, Found, above_zero, as_text
from headwater.launch.studies.resampling import over_seeds
from headwater.launch.studies.tracing.measured import retrieved
from headwater.launch.studies.tracing.parts import DONE
from headwater.launch.studies.tracing.recipe import FULL, OTHER, RANDOM, Row, rows
from headwater.launch.studies.tracing.settings import RecipeSettings
from headwater.launch.studies.verdict import NOT_TESTABLE
from headwater.train.artifacts import read_json

CLAIM = "Each part of the recipe is worth something on a real pretrained model"
NOT_GIVEN = (
    NOT_TESTABLE,
    "not run: no run of a real model was given (recipe.run=OUT/seed-0/model, OUT of `headwater study pretrained`)",
)


def measure(path: Path, settings: RecipeSettings) -> Found | None:
    """MRR and recall@10 of each row, and the full recipe less it, question by question; None if it was not asked for.

    Args:
        path: where the rows' rankings are.
    """
    if not settings.run:
        return None
    found = [*rows(settings), Row(RANDOM, "a random ranking", claimed=False)]
    values = {row.name: retrieved(path / f"{row.name}.jsonl") for row in found}
    done = read_json(path / DONE)
    told = table(found, values, np.array(done.pop("subjects")))
    return {**told, **done, "run": settings.run}


def table(made: Sequence[Row], values: dict[str, dict[str, np.ndarray]], subject_Q: np.ndarray) -> Found:
    """The rows' means, and the full recipe less each of them, with intervals over the questions' subjects."""
    told = {}
    for row in made:
        own = values[row.name]
        gaps = {name: over_seeds([values[FULL][name] - own[name]], [subject_Q]) for name in own}
        told[row.name] = {
            "label": row.label,
            "claimed": row.claimed,
            **{name: over_seeds([each], [subject_Q]) for name, each in own.items()},
            "full_less": gaps,
        }
    return {"rows": told}


def judge(found: Found | None) -> list[Claim]:
    if found is None:
        return [Claim(CLAIM, NOT_GIVEN)]
    told = found["rows"]
    same, chance = told[OTHER]["full_less"]["mrr"], told[RANDOM]["full_less"]["mrr"]
    control = f"another random projection: {as_text(same)}; scale, a random ranking: {as_text(chance)}"
    return [
        Claim(
            f"On a real model, {row['label']}: MRR below the full recipe's",
            above_zero(row["full_less"]["mrr"], f"{row['mrr'][0]:.3f} against {told[FULL]['mrr'][0]:.3f}, "),
            control,
        )
        for row in told.values()
        if row["claimed"]
    ]
