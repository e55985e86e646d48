"""Read a passage: its text with what ties it to a question, its document, when it was seen, what else it explains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from headwater.attribution.drawing.words import clean, highlight, seen_view
from headwater.attribution.explorer.holdings import Home, OpenedSet
from headwater.attribution.explorer.library import document_of
from headwater.attribution.explorer.limits import LABEL_CHARACTERS, READ_CHARACTERS
from headwater.attribution.explorer.pages.base import Params, Site, View, axis_of, ordinal, text
from headwater.attribution.explorer.pages.cards import Cards, fact_chart, score_words, shared_runs
from headwater.attribution.explorer.sets import Answer, Found
from headwater.configs.errors import MissingError

QUESTIONS = 30
"""Other questions that a passage is named for, shown at most."""
LEVELS = 5
"""Steps of heat on either side of zero."""
TOKENS = 2_000


def read(site: Site, params: Params) -> View:
    """The page of the passage `p`, by itself or as it was found for the question `q` of a set."""
    passage = text(params, "p", 4000)
    name, opened, answer = asked_for(site, params)
    home = opened.home if opened is not None else site.holdings.home_of(text(params, "index"))
    found = (
        next((each for each in (*answer.proponents, *answer.opponents) if each.id == passage), None) if answer else None
    )
    found = found or found_elsewhere(site, passage) or Found(0, passage)
    Cards(home, site.links).look_up([found])
    if found.text is None:
        raise MissingError(
            f"there is no passage {passage[:80]!r} here", fix="start the explorer on the run that has it"
        )
    query = f"{answer.prompt} {answer.target}" if answer else ""
    shown = clean(found.text)[:READ_CHARACTERS]
    runs = shared_runs(shown, query)
    facts = home.facts if home is not None else None
    probe = facts.probe_of(answer.id, answer.prompt, answer.target) if facts is not None and answer else None
    subject = str(facts.probes[probe].get("subject") or "") if facts is not None and probe is not None else ""
    uses = questions_of(site, passage, name, answer.id if answer else "")
    ends = [each for each in uses if each["end"] == "proponent"]
    address = {"p": passage, "set": name if answer else "", "q": answer.id if answer else ""}
    place = position(answer, passage) if answer else None
    context: dict[str, Any] = {
        "id": clean(passage)[:LABEL_CHARACTERS],
        "document": clean(document_of(passage)[0])[:LABEL_CHARACTERS],
        "facts": about(home, passage, found, answer, place),
        "question": {"prompt": clean(answer.prompt), "target": clean(answer.target)} if answer else None,
        "back": site.links("question", set=name, q=answer.id) if answer and opened else "",
        "label": opened.answers.label if opened is not None else "",
        "pieces": highlight(shown, clean(answer.target) if answer else "", subject, () if subject else runs),
        "cut": len(found.text) > READ_CHARACTERS,
        "shared": runs,
        "lane": lane(shown, runs),
        "heat": heat(found),
        "heat_job": heat_job(site, home, address, found, answer),
        "seen": None if found.seen is None else seen_view(found.seen, axis_of(home)),
        "steps": ", ".join(f"{step:,}" for step in (found.seen or [])[:40])
        + (" …" if len(found.seen or []) > 40 else ""),
        "chart": read_chart(home, probe, found, passage),
        "last": home.last_step if home is not None else 1,
        "around": around(site, home, passage),
        "duplicates": [
            {"id": clean(each)[:LABEL_CHARACTERS], "link": site.links("read", p=each)} for each in found.duplicates
        ],
        "uses": uses[:QUESTIONS],
        "uses_left": max(0, len(uses) - QUESTIONS),
        "proponent_of": len(ends),
        "citation": citation(site, passage, found, answer, place),
    }
    title = f"Passage {clean(passage)[:100]}"
    return View("read", title, "read", context, partial(flat_rows, passage, found, uses), address)


def asked_for(site: Site, params: Params) -> tuple[str, OpenedSet | None, Answer | None]:
    """The question that the passage is read for: of a set, or one that was just asked."""
    query, job = text(params, "q", 4000), text(params, "job", 64)
    if job and site.desk is not None:
        answered = site.desk.answer_named(job)
        return "", None, answered
    if not query:
        return "", None, None
    entry = site.holdings.set_of(text(params, "set"))
    opened = entry.open()
    return entry.name, opened, opened.answers.answer(opened.answers.row(query))


def found_elsewhere(site: Site, passage: str) -> Found | None:
    """The passage as some opened set names it, with its text, for files without a corpus."""
    for entry in site.holdings.sets.values():
        opened = entry.opened
        if opened is None or opened.answers.kind != "results":
            continue
        entries = opened.answers.postings.of_passage(passage)
        if len(entries):
            answer = opened.answers.answer(int(opened.answers.postings.query[entries[0]]))
            named = next((each for each in (*answer.proponents, *answer.opponents) if each.id == passage), None)
            if named is not None:
                return Found(named.place, named.id, text=named.text, seen=named.seen)
    return None


def position(answer: Answer, passage: str) -> str | None:
    for end, found in (("proponent", answer.proponents), ("opponent", answer.opponents)):
        for each in found:
            if each.id == passage:
                return f"{ordinal(each.place + 1)} {end}"
    return None


def about(
    home: Home | None, passage: str, found: Found, answer: Answer | None, place: str | None
) -> list[tuple[str, str]]:
    """What is known of the passage, in words."""
    rows = []
    if answer is not None and place is not None:
        rows.append(
            ("for this question", f"{place}, score {score_words(found.score)}" if found.score is not None else place)
        )
    if found.gold is not None:
        rows.append(("states the answer", "yes" if found.gold else "no"))
    library = home.library if home is not None else None
    number = library.numbers([passage]).get(passage) if library is not None else None
    if library is not None and number is not None:
        code = int(library.source_codes(np.array([number]))[0])
        rows.append(("source", library.sources[code]))
        rows.append(("number in the corpus", f"{number:,}"))
    return [(key, clean(value)) for key, value in rows]


def lane(shown: str, runs: list[str]) -> str:
    """The exact-match lane: where in the passage words of the question stand, as an SVG path over 0 to 100."""
    parts, at = [], 0
    whole = max(1, len(shown))
    for kind, piece in highlight(shown, "", "", runs):
        if kind == "shared":
            parts.append(f"M{100 * at / whole:.2f} 5H{100 * (at + len(piece)) / whole:.2f}")
        at += len(piece)
    return "".join(parts)


def heat(found: Found) -> list[dict[str, Any]] | None:
    """The passage token by token, each with a class from `n5` (speaks against) over `z` to `p5` (speaks for)."""
    if not found.tokens or not found.token_scores or len(found.tokens) != len(found.token_scores):
        return None
    scores = np.nan_to_num(np.array(found.token_scores[:TOKENS], np.float64))
    top = float(np.abs(scores).max()) or 1.0
    pieces = []
    for token, score in zip(found.tokens, scores.tolist(), strict=False):
        share = abs(score) / top
        level = math.ceil(LEVELS * share) if share > 0.04 else 0
        kind = "z" if not level else f"{'p' if score > 0 else 'n'}{level}"
        pieces.append({"text": clean(token)[:200], "kind": kind, "score": score_words(score)})
    return pieces


def heat_job(
    site: Site, home: Home | None, address: dict[str, str], found: Found, answer: Answer | None
) -> dict[str, str] | None:
    """What to ask for token scores, where they are not there and can be made."""
    if site.desk is None or answer is None or found.tokens or home is None:
        return None
    index = site.desk.index_with_tokens(home)
    if not index:
        return None
    return {
        "index": index,
        "prompt": answer.prompt,
        "target": answer.target,
        "against": answer.against,
        "passage": found.id,
    }


def read_chart(home: Home | None, probe: int | None, found: Found, passage: str) -> dict[str, Any] | None:
    if home is None or probe is None or not home.facts.measured or not found.seen:
        return None
    return fact_chart(home, probe, [(passage, found.seen, bool(found.gold))])


def around(site: Site, home: Home | None, passage: str) -> list[dict[str, Any]]:
    """The passages of the document before and after this one."""
    library = home.library if home is not None else None
    if library is None:
        return []
    names = library.around(passage)
    if len(names) < 2:
        return []
    texts = library.texts(names)
    return [
        {
            "id": clean(name)[:LABEL_CHARACTERS],
            "place": document_of(name)[1],
            "text": clean(texts.get(name, ""))[:600],
            "here": name == passage,
            "link": site.links("read", p=name),
        }
        for name in names
    ]


def questions_of(site: Site, passage: str, name: str, query: str) -> list[dict[str, Any]]:
    """The other questions that a passage is named for: of the set at hand, or else of the first that names it."""
    names = [name] if name else list(site.holdings.sets)
    for each in names:
        opened = site.holdings.sets[each].opened
        if opened is None:
            continue
        answers, postings = opened.answers, opened.answers.postings
        entries = postings.of_passage(passage)
        entries = entries[np.argsort(postings.place[entries], kind="stable")]
        uses = [
            {
                "prompt": clean(answers.prompts[row].as_py()),
                "target": clean(answers.targets[row].as_py()),
                "example_id": answers.ids[row],
                "end": "opponent" if postings.opponent[entry] else "proponent",
                "place": ordinal(int(postings.place[entry]) + 1),
                "score": score_words(float(postings.score[entry])),
                "link": site.links("question", set=each, q=answers.ids[row]),
            }
            for entry in entries.tolist()
            if answers.ids[row := int(postings.query[entry])] != query and postings.place[entry] < 20
        ]
        if uses:
            return uses
    return []


def citation(site: Site, passage: str, found: Found, answer: Answer | None, place: str | None) -> str:
    """The passage as one would quote it."""
    quoted = " ".join(clean(found.text or "").split())
    quoted = quoted if len(quoted) <= 500 else quoted[:499] + "…"
    parts = [f"“{quoted}”", f"passage {clean(passage)} of {site.holdings.title}"]
    if found.seen:
        parts.append(
            "seen at training step" + ("s " if len(found.seen) > 1 else " ") + ", ".join(map(str, found.seen[:20]))
        )
    if answer is not None and place:
        parts.append(f"{place} of “{clean(answer.prompt)} {clean(answer.target)}”, score {score_words(found.score)}")
    return "; ".join(parts) + " (Headwater)"


def flat_rows(passage: str, found: Found, uses: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield {"passage": passage, "text": found.text, "seen_steps": found.seen, "score": found.score, "question": ""}
    for use in uses:
        yield {"passage": passage, "question": use["example_id"], "end": use["end"], "place": use["place"]}
