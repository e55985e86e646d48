"""Ask: a prompt and the answer whose source is sought, put to the model; or how the model goes on, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from headwater.attribution.drawing.chart import printed
from headwater.attribution.drawing.words import clean, probability
from headwater.attribution.explorer.limits import PROMPT_CHARACTERS, TARGET_CHARACTERS
from headwater.attribution.explorer.live import DONE, FAILED, Asked, Job
from headwater.attribution.explorer.pages.answers import answer_context, answer_rows
from headwater.attribution.explorer.pages.base import Params, Site, View, number, text

EXAMPLES = 6
NONE = -1


def ask(site: Site, params: Params) -> View:
    """The page: the form, then the way of the question, then its answer."""
    desk = site.desk
    prompt = text(params, "prompt", PROMPT_CHARACTERS)
    target = text(params, "target", TARGET_CHARACTERS)
    against = text(params, "against", TARGET_CHARACTERS)
    go = params.get("go", "") == "1" and bool(prompt.strip())
    index = ""
    if desk is not None and desk.indexes:
        index = desk.index_named(text(params, "index")).name
    address: dict[str, Any] = {"prompt": prompt, "target": target, "against": against, "index": params.get("index", "")}
    context: dict[str, Any] = {
        "prompt": prompt,
        "target": target,
        "against": against,
        "index": index,
        "indexes": index_choices(site),
        "troubles": [entry.trouble for entry in site.holdings.indexes.values() if entry.trouble],
        "passages": passages_of(site, index),
        "examples": examples(site, index, address["index"]),
        "answer": None,
        "job": None,
        "tokens": None,
        "error": "",
        "wanted": None,
        "home": clean(site.holdings.title),
    }
    rows: Any = list
    full = dict(address)
    if desk is not None and go:
        full |= {"go": 1, "from": params.get("from", ""), "to": params.get("to", ""), "target": "", "against": ""}
        going_on(site, params, Asked("continue", index, prompt), context, address)
    elif desk is not None and prompt.strip() and target.strip():
        asked = Asked("trace", index, prompt, target, against)
        job = desk.found(asked)
        context |= state_of(job, asked, desk)
        if job is not None and job.state == DONE:
            rows = traced(site, job, context)
    title = f"{clean(prompt)[:80]} {clean(target)[:40]}" if prompt.strip() else "Ask"
    return View("ask", title, "ask", context, rows, full)


def state_of(job: Job | None, asked: Asked, desk: Any) -> dict[str, Any]:
    """Where a question stands; `wanted` is what the page has to ask for."""
    if job is None:
        return {"wanted": asked}
    if job.state == FAILED:
        return {"error": clean(job.error)}
    return {"job": None if job.state == DONE else status_of(job, desk)}


def status_of(job: Job, desk: Any) -> dict[str, Any]:
    """What is said of a question that is under way."""
    ahead = desk.ahead(job)
    words = {
        "waiting": f"waiting: {ahead:,} before this one" if ahead else "waiting",
        "opening": "opening the model and its index",
        "reading": "reading the question",
        "scanning": f"{job.done:,} of {job.total:,} passages compared",
    }.get(job.state, job.state)
    share = round(100 * job.done / job.total) if job.total else 0
    return {"id": job.id, "state": job.state, "words": words, "share": share, "error": clean(job.error)}


def traced(site: Site, job: Job, context: dict[str, Any]) -> Any:
    """Puts a finished trace into the context; gives what makes its rows."""
    answer, home = job.result, site.holdings.indexes[job.about["index"]].home
    probe = home.facts.probe_of("", answer.prompt, answer.target)
    gold = {str(name) for name in home.facts.probes[probe].get("gold") or ()} if probe is not None else set()
    address = {"job": job.id, "index": job.about["index"]}
    shown = answer_context(answer, home, site.links, gold, address)
    logprobs = job.about["logprobs"]
    total = sum(logprobs)
    context["answer"] = shown | {
        "facts": [
            ("probability of the answer", probability(math.exp(total))),
            (
                "log-probability",
                printed(f"{total:.2f}") + (f", {len(logprobs)} tokens" if len(logprobs) > 1 else ""),
            ),
            ("passages compared", f"{job.about['scanned']:,}"),
            ("seconds", f"{job.about['seconds']:.1f}"),
        ]
    }
    return partial(answer_rows, answer, gold)


def going_on(site: Site, params: Params, asked: Asked, context: dict[str, Any], address: dict[str, Any]) -> None:
    """The model's own continuation, whose tokens are links: one begins a choice, a further one ends it."""
    job = site.desk.found(asked)
    context |= state_of(job, asked, site.desk)
    context["going_on"] = True
    if job is None or job.state != DONE:
        return
    count = len(job.result)
    first = number(params, "from", count, 0, count)
    last = number(params, "to", first, first, count)
    chosen = range(first, last + 1) if first < count else range(0)
    tokens = [clean(token.text) for token in job.result]
    link = partial(site.links, "ask", prompt=asked.prompt, go=1, index=address["index"])
    context["tokens"] = [
        {
            "text": token,
            "prob": probability(job.result[place].prob),
            "on": place in chosen,
            "link": link(**dict(zip(("from", "to"), choice(place, chosen), strict=True))),
        }
        for place, token in enumerate(tokens)
    ]
    if chosen:
        before = "".join(token.text for token in job.result[: chosen[0]])
        target = "".join(token.text for token in job.result[chosen[0] : chosen[-1] + 1])
        context["choice"] = {
            "prompt": (asked.prompt + before).rstrip() if target[:1].isspace() else asked.prompt + before,
            "target": target.strip() or target,
            "others": [
                {"text": clean(other), "prob": probability(prob), "bare": other.strip()}
                for other, prob in job.result[chosen[0]].others
                if other != job.result[chosen[0]].text and other.strip()
            ],
        }


def choice(place: int, chosen: Sequence[int]) -> tuple[int, int]:
    """What a click on a token chooses, after what was chosen before."""
    if not chosen or place in chosen:
        return place, place
    return min(place, chosen[0]), max(place, chosen[-1])


def index_choices(site: Site) -> list[tuple[str, str]]:
    if site.desk is None:
        return []
    return [(entry.name, index_words(entry)) for entry in site.desk.indexes]


def index_words(entry: Any) -> str:
    about = entry.about
    parts = [str(about.get("loss", "")).replace("_", "-")]
    if about.get("step") is not None:
        parts.append(f"step {int(about['step']):,}")
    return f"{entry.name} ({', '.join(part for part in parts if part)})"


def passages_of(site: Site, index: str) -> int:
    entry = site.holdings.indexes.get(index)
    return int(entry.about.get("passages", 0)) if entry is not None else 0


def examples(site: Site, index: str, named: str) -> list[dict[str, str]]:
    """Questions to begin with: the run's own probes, one of each relation."""
    entry = site.holdings.indexes.get(index)
    if entry is None:
        return []
    made: dict[str, dict[str, str]] = {}
    for probe in entry.home.facts.probes:
        made.setdefault(
            str(probe.get("relation", len(made))),
            {
                "prompt": clean(probe["prompt"])[:160],
                "target": clean(probe["target"])[:60],
                "link": site.links("ask", prompt=probe["prompt"], target=probe["target"], index=named),
            },
        )
        if len(made) >= EXAMPLES:
            break
    return list(made.values())
