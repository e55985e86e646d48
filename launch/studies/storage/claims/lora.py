"""LoRA extracts from rich biographies what it never saw asked, and not from plain ones."""

from __future__ import annotations

from typing import Any

from headwater.launch.studies.claim import Claim, Found, as_text
from headwater.launch.studies.storage.data import MAIN, PLAIN
from headwater.launch.studies.storage.measured import SHUFFLED, Measured
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, shown

BOUND = 0.6
WIDTH, TAUGHT = 768, 300_000
"""The paper's: width of GPT-2, and questions about 50,000 people."""


def measure(measured: Measured) -> Found:
    """Of LoRA as configured and of its other sizes: ranks, laps over the questions, answers with both variants."""
    settings = measured.settings
    taught = 6 * (settings.population.people // 2)
    rows = {}
    for way, lora in (("lora", settings.lora), *((f"lora-{each.name}", each) for each in settings.lora_sizes)):
        rich, plain = (measured.accuracy(variant, way) for variant in (MAIN, PLAIN))
        if rich is None and plain is None:
            continue
        rows[way] = {
            "embedding_rank": lora.embedding_rank,
            "rank": lora.rank,
            "laps": lora.steps * lora.batch / taught,
            MAIN: rich,
            PLAIN: plain,
            "taught": {
                variant: sum(each.taught for each in found.values()) / len(found)
                for variant in (MAIN, PLAIN)
                if (found := measured.answers.get((variant, way)))
            },
            SHUFFLED: measured.accuracy(MAIN, way, SHUFFLED),
        }
    return {"rows": rows}


def judge(summary: dict[str, Any]) -> list[Claim]:
    found, width = summary["measures"]["lora"], summary["model"]["hidden"]
    claim = f"LoRA on a frozen model answers over 60% about unseen people ({MAIN})"
    row = found["rows"].get("lora")
    if row is None or row[MAIN] is None:
        return [Claim(claim, (NOT_TESTABLE, "not run"))]
    value = row[MAIN]
    text = f"{shown(value)} with ranks {row['embedding_rank']} and {row['rank']}, {row['laps']:.0f} laps"
    for way, other in found["rows"].items():
        if way != "lora":
            ranks = f"{other['embedding_rank']} and {other['rank']}, {other['laps']:.0f} laps"
            text += f"; {way.removeprefix('lora-')} ({ranks}) {as_text(other[MAIN])}"
    against = f"{PLAIN}: {as_text(row[PLAIN])}; answers held against another person's: {as_text(row[SHUFFLED])}"
    shares = f"{row['embedding_rank'] / width:.2f} and {row['rank'] / width:.3f} of the width"
    differs = f"ranks are {shares} instead of {128 / WIDTH:.2f} and {8 / WIDTH:.3f} to {16 / WIDTH:.3f}"
    differs += f", {row['laps']:.0f} laps over the questions instead of {50_000 * 96 / TAUGHT:.0f}"
    return [Claim(claim, (REPRODUCED if value[1] > BOUND else NOT_REPRODUCED, text), against, differs)]
