"""An answer as a page shows it: proponents, opponents, and the fact's curve where it was followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headwater.attribution.drawing.words import clean
from headwater.attribution.explorer.holdings import Home
from headwater.attribution.explorer.limits import LABEL_CHARACTERS, SHOWN_PASSAGES
from headwater.attribution.explorer.pages.base import Links
from headwater.attribution.explorer.pages.cards import Cards, fact_chart, shared_runs
from headwater.attribution.explorer.sets import Answer

ON_CURVE = 5
"""Proponents whose exposures stand on the curve."""


def answer_context(
    answer: Answer, home: Home | None, links: Links, gold: set[str], address: dict[str, Any]
) -> dict[str, Any]:
    """What the template `answer.html` draws.

    Args:
        gold: ids of the passages known to state the answer.
        address: parameters that lead from a passage's page back to this answer.
    """
    facts = home.facts if home is not None else None
    probe = facts.probe_of(answer.id, answer.prompt, answer.target) if facts is not None else None
    subject = str(facts.probes[probe].get("subject") or "") if facts is not None and probe is not None else ""
    shown = Answer(
        answer.id,
        answer.prompt,
        answer.target,
        answer.against,
        answer.relation,
        answer.proponents[:SHOWN_PASSAGES],
        answer.opponents[:SHOWN_PASSAGES],
        answer.complete,
    )
    cards = Cards(home, links).cards(shown, gold, subject=subject, address=address)
    chart = None
    if home is not None and facts is not None and facts.measured and probe is not None:
        lanes = [
            (card["id"], found.seen or [], card["gold"])
            for card, found in list(zip(cards["proponents"], shown.proponents, strict=True))[:ON_CURVE]
        ]
        chart = fact_chart(home, probe, lanes)
    return {
        "id": clean(answer.id)[:LABEL_CHARACTERS],
        "prompt": clean(answer.prompt),
        "target": clean(answer.target),
        "against": clean(answer.against),
        "chart": chart,
        "on_curve": min(ON_CURVE, len(cards["proponents"])),
        "watch": links("watch", fact=facts.probes[probe]["example_id"])
        if chart and facts and probe is not None
        else "",
        "last": home.last_step if home is not None else 1,
        "complete": answer.complete,
        "more": max(0, len(answer.proponents) - SHOWN_PASSAGES),
        **cards,
    }


def answer_rows(answer: Answer, gold: set[str]) -> Iterator[dict[str, Any]]:
    """The passages of an answer, for JSON and CSV."""
    for end, found in (("proponent", answer.proponents), ("opponent", answer.opponents)):
        for each in found:
            yield {
                "example_id": answer.id,
                "end": end,
                "place": each.place + 1,
                "passage": each.id,
                "score": each.score,
                "gold": each.gold if each.gold is not None else each.id in gold,
                "seen_steps": each.seen,
                "text": each.text,
            }


def pair_record(answer: Answer) -> dict[str, Any]:
    """An answer in the format that PAIR's viewer draws, and `headwater trace` writes."""
    record: dict[str, Any] = {
        "example_id": answer.id,
        "inputs_plaintext": answer.prompt,
        "targets_plaintext": answer.target,
    }
    if answer.relation:
        record["relation"] = answer.relation
    for end, found in (("proponent", answer.proponents), ("opponent", answer.opponents)):
        if end == "opponent" and not found:
            continue
        record[f"{end}s"] = [each.text or "" for each in found]
        record[f"{end}_ids"] = [each.id for each in found]
        # A ranking has no scores: what keeps its order stands in for them.
        record[f"{end}_scores"] = [each.score if each.score is not None else 1 / (1 + each.place) for each in found]
        if found and all(each.gold is not None for each in found):
            record[f"{end}_correct"] = [bool(each.gold) for each in found]
        if found and all(each.seen is not None for each in found):
            record[f"{end}_seen_steps"] = [each.seen for each in found]
    return record


def words_shared(text: str, question: str) -> list[str]:
    """Runs of words in common, as the page lists them."""
    return [clean(run) for run in shared_runs(text, question)]
