"""Watch a fact: its probability over training, every time that a passage about it was seen, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.attribution.drawing.chart import Axis, format_tick, path, plain, printed, spoken, spread
from headwater.attribution.drawing.curves import curve_view
from headwater.attribution.drawing.words import clean, probability
from headwater.attribution.explorer.grammar import Columns, mask_of
from headwater.attribution.explorer.holdings import Home
from headwater.attribution.explorer.limits import FILTER_CHARACTERS
from headwater.attribution.explorer.pages.base import Params, Site, View, axis_of, number, text
from headwater.attribution.explorer.pages.browse import finite
from headwater.attribution.explorer.pages.cards import Cards, fact_chart
from headwater.attribution.explorer.sets import Answer, Found
from headwater.configs.errors import MissingError

FACTS = 24
"""Facts on a page."""
JUMPS = 5
TAUGHT = 12
"""Passages of a fact shown."""
SORTS = {"": "as asked", "rise": "largest rise first", "after": "best known first", "-after": "least known first"}


def watch(site: Site, params: Params) -> View:
    """The page of all facts, or of the one with the id `fact`."""
    home = home_asked(site, text(params, "run"))
    fact = text(params, "fact", 4000)
    if fact:
        probe = home.facts.number_of.get(fact)
        if probe is None:
            raise MissingError(f"{home.name} has no probe {fact[:80]!r}", fix="choose one from the list")
        return one(site, home, probe)
    return overview(site, home, params)


def home_asked(site: Site, name: str) -> Home:
    probed = site.holdings.probed
    if not probed:
        raise MissingError("nothing here was followed over training", expected="a run with probes.parquet")
    return next((home for home in probed if home.name == name), probed[0])


def columns_of(home: Home) -> Columns:
    probes, ends = home.facts.probes, home.facts.ends
    texts = {
        "relation": [str(probe.get("relation", "")) for probe in probes],
        "prompt": [probe["prompt"] for probe in probes],
        "target": [probe["target"] for probe in probes],
        "id": [probe["example_id"] for probe in probes],
    }
    rise = ends["after"] - ends["before"]
    return Columns(
        {name: pc.utf8_lower(pa.array(column, pa.string())) for name, column in texts.items()},
        {"before": ends["before"], "after": ends["after"], "prob": ends["after"], "rise": rise},
        {"known": ends["exact"]},
        ("prompt", "target", "id"),
    )


def overview(site: Site, home: Home, params: Params) -> View:
    where, sort = text(params, "where", FILTER_CHARACTERS), text(params, "sort", 10)
    sort = sort if sort in SORTS else ""
    columns = columns_of(home)
    rows = np.flatnonzero(mask_of(where, columns))
    keys = {"rise": -columns.numbers["rise"], "after": -columns.numbers["after"], "-after": columns.numbers["after"]}
    order = rows[np.argsort(keys[sort][rows], kind="stable")] if sort else rows
    pages = max(1, -(-len(order) // FACTS))
    page = number(params, "page", 1, 1, pages)
    run = home.name if len(site.holdings.probed) > 1 else ""
    address = {"run": run, "where": where, "sort": sort}
    names = list(home.facts.means)
    context = {
        "run": run,
        "home": home.name,
        "runs": [each.name for each in site.holdings.probed],
        "chart": means_chart(home),
        "where": where,
        "sort": sort,
        "sorts": SORTS,
        "shown": len(order),
        "total": len(home.facts.probes),
        "fields": columns.names,
        "cards": [small(site, home, probe, names, run) for probe in order[(page - 1) * FACTS : page * FACTS].tolist()],
        "facets": facets(site, names, run, where, sort),
        "page": page,
        "pages": pages,
        "back": site.links("watch", **address, page=page - 1) if page > 1 else "",
        "on": site.links("watch", **address, page=page + 1) if page < pages else "",
    }
    full = {**address, "page": page if page > 1 else ""}
    return View("watch", f"Facts of {home.name} over training", "watch", context, partial(flat_rows, home, order), full)


def facets(site: Site, names: list[str], run: str, where: str, sort: str) -> list[dict[str, Any]]:
    if not 1 < len(names) <= FACTS:
        return []
    made: list[dict[str, Any]] = [{"label": "all", "link": site.links("watch", run=run, sort=sort), "on": not where}]
    for place, name in enumerate(names):
        wanted = f'relation="{name}"' if '"' not in name else ""
        link = site.links("watch", run=run, where=wanted, sort=sort)
        made.append({"label": clean(spoken(name)), "link": link, "on": where == wanted, "colour": place % 8})
    return made


def small(site: Site, home: Home, probe: int, names: list[str], run: str) -> dict[str, Any]:
    """One fact of the list, with its curve in small."""
    line = home.facts.probes[probe]
    steps, prob, _ = home.facts.curve(probe)
    relation = str(line.get("relation", "fact"))
    return {
        "prompt": clean(line["prompt"])[:300],
        "target": clean(line["target"])[:200],
        "relation": clean(spoken(relation)),
        "colour": names.index(relation) % 8 if relation in names else 7,
        "curve": curve_view(steps.tolist(), prob, axis_of(home)),
        "link": site.links("watch", run=run, fact=line["example_id"]),
    }


def means_chart(home: Home) -> dict[str, Any]:
    """The mean probability of each relation over training."""
    axis, steps = axis_of(home), home.facts.steps
    top = max((float(np.nanmax(mean)) for mean in home.facts.means.values() if np.isfinite(mean).any()), default=1.0)
    scale = Axis(0.0, min(1.0, max(0.1, top * 1.12)))
    xs = [axis.place(step) for step in steps.tolist()]
    lines: list[dict[str, Any]] = []
    for place, (name, mean_S) in enumerate(list(home.facts.means.items())[:8]):
        ys = [scale.place(value) if np.isfinite(value) else float("nan") for value in mean_S]
        known = [value for value in mean_S.tolist() if np.isfinite(value)]
        last = known[-1] if known else 0.0
        lines.append(
            {
                "name": clean(spoken(name)),
                "colour": place,
                "path": path(xs, ys),
                "end": scale.place(last),
                "last": plain(last),
            }
        )
    for line, at in zip(lines, spread([line["end"] for line in lines], 8.0), strict=True):
        line["label"] = round(100 - at, 2)
    return {
        "lines": lines,
        "xticks": [(axis.place(tick), f"{tick:,.0f}") for tick in axis.ticks(6)],
        "yticks": [(round(100 - scale.place(tick), 2), format_tick(tick)) for tick in scale.ticks(4)],
    }


def one(site: Site, home: Home, probe: int) -> View:
    """One fact."""
    line = home.facts.probes[probe]
    gold = [str(name) for name in line.get("gold") or ()]
    entry = next(
        (each for each in site.holdings.sets.values() if each.home is home and each.has(line["example_id"])), None
    )
    answer = Answer(line["example_id"], line["prompt"], line["target"])
    named: list[Found] = []
    if entry is not None:
        opened = entry.open()
        named = opened.answers.answer(opened.answers.row(answer.id)).proponents
    best = named[:TAUGHT]
    # Gold passages that do not stand among the best are shown too, at their places if the trace has them.
    places = {each.id: each for each in named}
    others = [name for name in gold if name not in {each.id for each in best}][:TAUGHT]
    answer.proponents = best + [
        places.get(name) or Found(len(named) + place, name, gold=True) for place, name in enumerate(others)
    ]
    address = {"set": entry.name, "q": answer.id} if entry is not None else {}
    cards = Cards(home, site.links)
    subject = str(line.get("subject") or "")
    shown = cards.cards(answer, set(gold), subject=subject, address=address)["proponents"]
    lanes = [(card["id"], found.seen or [], card["gold"]) for card, found in zip(shown, answer.proponents, strict=True)]
    teaching = [lane for lane in lanes if lane[2]] or lanes[:5]
    ends = home.facts.ends
    names = list(home.facts.means)
    relation = str(line.get("relation", "fact"))
    run = home.name if len(site.holdings.probed) > 1 else ""
    probes = home.facts.probes

    def beside(to: int) -> str:
        return site.links("watch", run=run, fact=probes[to]["example_id"]) if 0 <= to < len(probes) else ""

    context = {
        "prompt": clean(line["prompt"]),
        "target": clean(line["target"]),
        "relation": clean(spoken(relation)),
        "colour": names.index(relation) % 8 if relation in names else 7,
        "chart": fact_chart(home, probe, teaching),
        "before": probability(float(ends["before"][probe])) if np.isfinite(ends["before"][probe]) else "–",
        "after": probability(float(ends["after"][probe])) if np.isfinite(ends["after"][probe]) else "–",
        "exact": {1.0: "right", 0.0: "wrong"}.get(float(ends["exact"][probe]), "–"),
        "exposures": sum(len(steps) for _, steps, _ in teaching),
        "taught_by": len(teaching),
        "gold": any(lane[2] for lane in lanes),
        "jumps": jumps(home, probe, teaching),
        "cards": shown,
        "label": entry.label if entry is not None else "",
        "last": home.last_step,
        "question": site.links("question", **address) if entry is not None else "",
        "all": site.links("watch", run=run),
        "back": beside(probe - 1),
        "on": beside(probe + 1),
        "where_it_stands": f"{probe + 1:,} of {len(probes):,}",
    }
    title = clean(f"{line['prompt']} {line['target']}")[:120]
    return View("watch", title, "watch_one", context, partial(curve_rows, home, probe), {"run": run, "fact": answer.id})


def jumps(home: Home, probe: int, lanes: list[tuple[str, Any, bool]]) -> list[dict[str, str]]:
    """The largest rises between two probed steps, with how often the passages were seen in between."""
    steps, prob, _ = home.facts.curve(probe)
    rises = np.nan_to_num(np.diff(prob))
    seen = np.sort(np.array([step for _, each, _ in lanes for step in each], np.int64))
    made = []
    for place in np.argsort(-rises, kind="stable")[:JUMPS].tolist():
        if rises[place] <= 0.005:
            continue
        low, high = int(steps[place]), int(steps[place + 1])
        count = int(np.searchsorted(seen, high, side="right") - np.searchsorted(seen, low, side="right"))
        made.append(
            {
                "from": f"{low:,}",
                "to": f"{high:,}",
                "rise": printed(f"{rises[place]:+.2f}"),
                "seen": f"{count:,}",
            }
        )
    return made


def flat_rows(home: Home, order: np.ndarray) -> Iterator[dict[str, Any]]:
    ends = home.facts.ends
    for probe in order.tolist():
        line = home.facts.probes[probe]
        yield {
            "example_id": line["example_id"],
            "prompt": line["prompt"],
            "target": line["target"],
            "before": finite(ends["before"][probe]),
            "after": finite(ends["after"][probe]),
            "answered_right": finite(ends["exact"][probe]),
        }


def curve_rows(home: Home, probe: int) -> Iterator[dict[str, Any]]:
    for step, prob, logprob in zip(*home.facts.curve(probe), strict=True):
        yield {"step": int(step), "probability": finite(prob), "log_probability_per_token": finite(logprob)}
