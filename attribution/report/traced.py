"""The traced facts of the page: which are shown, and what is said of each passage."""

from __future__ import annotations

from typing import Any

import xxhash

from headwater.attribution.drawing.chart import Axis, spoken
from headwater.attribution.drawing.curves import curve_view
from headwater.attribution.drawing.words import excerpt, highlight, seen_view
from headwater.attribution.report.figures import relations, step_axis
from headwater.attribution.report.inputs import RunData
from headwater.attribution.report.settings import ReportSettings


def choose(data: RunData, count: int, seed: int) -> tuple[list[dict[str, Any]], str | None]:
    """A seeded draw of traced facts, dealt evenly over the relations, and as the last one the worst of the run.

    Nothing is picked for its looks: the order within a relation is by a hash of (seed, example id).

    Returns:
        The trace rows to show, and the example id of the worst one (None where no ranks over the corpus are known).
    """
    rows = {str(row["example_id"]): row for row in data.trace}
    worst = worst_of(data, rows)
    drawn: dict[str, list[str]] = {}
    for name in sorted(rows, key=lambda name: xxhash.xxh3_64_intdigest(f"{seed} {name}")):
        if name != worst:
            drawn.setdefault(str(rows[name].get("relation", "fact")), []).append(name)
    room = count - (worst is not None)
    order = [name for name in relations(data) if name in drawn] + sorted(set(drawn) - set(relations(data)))
    picked: list[str] = []
    while len(picked) < room and any(drawn.values()):
        for relation in order:
            if drawn[relation] and len(picked) < room:
                picked.append(drawn[relation].pop(0))
    if worst is not None:
        picked.append(worst)
    return [rows[name] for name in picked], worst


def worst_of(data: RunData, rows: dict[str, dict[str, Any]]) -> str | None:
    """The traced query whose first gold passage stands deepest, if any stands below the first place."""
    ranks = {name: min(data.rankings[name].gold_ranks) for name in rows if ranked(data, name)}
    name = max(ranks, key=lambda name: (ranks[name], name), default=None)
    return name if name is not None and ranks[name] > 0 else None


def ranked(data: RunData, name: str) -> bool:
    return name in data.rankings and bool(data.rankings[name].gold_ranks)


def traced_facts(data: RunData, settings: ReportSettings) -> list[dict[str, Any]]:
    """The facts as the template shows them."""
    rows, worst = choose(data, settings.facts, settings.seed)
    probe_numbers = {str(probe["example_id"]): number for number, probe in enumerate(data.probes)}
    axis = step_axis(data)
    names = relations(data)
    facts = []
    for row in rows:
        name = str(row["example_id"])
        number = probe_numbers.get(name)
        probe = data.probes[number] if number is not None else {}
        relation = str(row.get("relation") or probe.get("relation", "fact"))
        fact = {
            "id": name,
            "prompt": row["inputs_plaintext"],
            "target": row["targets_plaintext"],
            "relation": spoken(relation),
            "colour": names.index(relation) % 8 if relation in names else 7,
            "worst": name == worst,
            "rank": min(data.rankings[name].gold_ranks) + 1 if ranked(data, name) else None,
            "curve": curve_of(data, number, axis),
        }
        subject = str(probe.get("subject") or "")
        for kind, shown in (("proponent", settings.proponents), ("opponent", settings.opponents)):
            fact[f"{kind}s"] = passages_of(
                data, row, kind, shown, axis, settings.excerpt, subject, set(probe.get("gold") or ())
            )
        facts.append(fact)
    return facts


def curve_of(data: RunData, number: int | None, axis: Axis) -> dict[str, Any] | None:
    """The fact's probability over training, drawn on the same steps as its passages' strips."""
    return None if number is None else curve_view(data.curves.steps_S.tolist(), data.curves.prob_SP[:, number], axis)


def passages_of(
    data: RunData,
    row: dict[str, Any],
    kind: str,
    shown: int,
    axis: Axis,
    excerpt_characters: int,
    subject: str,
    gold: set[str],
) -> list[dict[str, Any]]:
    """The first `shown` proponents or opponents of a trace row."""
    texts, ids, scores = row.get(f"{kind}s") or [], row.get(f"{kind}_ids") or [], row.get(f"{kind}_scores") or []
    correct = row.get(f"{kind}_correct") or [each in gold for each in ids]
    seen = row.get(f"{kind}_seen_steps") or [None] * len(ids)
    top = max((abs(score) for score in [*(row.get("proponent_scores") or []), *scores]), default=1.0) or 1.0
    target = row["targets_plaintext"]
    passages = []
    for place in range(min(shown, len(ids))):
        steps = seen[place]
        passages.append(
            {
                "place": place + 1,
                "id": str(ids[place]),
                "score": f"{scores[place]:+.3f}".replace("0.", ".", 1).replace("-", "−"),
                "length": round(100 * abs(scores[place]) / top, 1),
                "gold": bool(correct[place]) if place < len(correct) else False,
                "injected": str(ids[place]) in (data.schedule or {}),
                "pieces": highlight(excerpt(str(texts[place]), target, excerpt_characters), target, subject),
                "seen": None if steps is None else seen_view(steps, axis),
            }
        )
    return passages
