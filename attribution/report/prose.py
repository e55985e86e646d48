"""The sentences of the page, written from the figures: nothing is claimed that the table does not show."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headwater.attribution.drawing.words import probability
from headwater.attribution.evaluation.table import COLUMNS, LABELS, format_interval, format_value, ordered
from headwater.attribution.report.figures import best_methods

CEILING = 0.95
"""From this MRR on, a method is said to stand at the ceiling."""


def deck(summary: dict[str, Any]) -> str:
    """What was done, in one sentence."""
    corpus, train, facts = summary["corpus"], summary["train"], summary["facts"]
    return (
        f"A language model was pretrained for {train['steps']:,} steps on {corpus['passages']:,} passages, "
        f"{corpus['injected']:,} of them planted to teach it facts about {facts['people']:,} invented people; then "
        f"each of {facts['queries']:,} questions was followed back through every passage to the ones that taught "
        "the answer, and to the steps at which they were seen."
    )


def key_figures(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, a second line) for the band under the header."""
    train, facts, index = summary["train"], summary["facts"], summary["index"]
    passages = summary["corpus"]["passages"]
    what = "passages, every one indexed" if index["passages"] == passages else "passages indexed"
    size = f", {index['bytes_per_passage']:,} bytes each" if index["bytes_per_passage"] else ""
    before, after = probability(facts["target_prob_before"]), probability(facts["target_prob_after"])
    loss = f"loss {train['loss']:.2f} at the end" if train["loss"] is not None else ""
    figures = [
        (f"{index['passages']:,}", what, f"{index['dims']:,} dimensions{size}"),
        (short(train["tokens"]), "tokens read in training", loss),
        (f"{before} → {after}", "probability of the right answer", "mean over all questions, before and after"),
        (percent(facts["exact_match"]), "answered exactly", "in wordings not seen in training"),
    ]
    name = first_method(summary["methods"], "mrr")
    if name:
        row = summary["methods"][name]
        figures.append(
            (format_value("mrr", row["mrr"][0]), f"MRR of {label(name)}", "1 / rank of the first gold passage")
        )
        figures.append((percent(row["hit@10"][0]), "traced into the first ten", f"of {passages:,} passages"))
    return figures


def states_it(methods: dict[str, Any]) -> list[str]:
    """Which method finds the passages that state the fact: plainly, BM25 first where it stands at the ceiling."""
    rows = {name: row["mrr"] for name, row in methods.items() if "mrr" in row}
    sentences = []
    if "bm25" in rows and rows["bm25"][0] >= CEILING:
        sentences.append(
            f"BM25 stands at the ceiling, with an MRR of {format_value('mrr', rows['bm25'][0])}, and nothing here "
            "claims to beat it: the planted passages state each fact literally, with the name and the answer that the "
            "question holds, so matching words finds them. It reads the question and the answer; it never looks at the "
            "model."
        )
    elif "bm25" in rows:
        reached = format_interval("mrr", rows["bm25"])
        sentences.append(f"BM25, which matches words and never looks at the model, reaches an MRR of {reached}.")
    name = first_method(methods, "mrr", without=("bm25", "random"))
    if name:
        beside = [
            f"{label(each)} {format_value('mrr', rows[each][0])}" for each in ("gradient_dot", "random") if each in rows
        ]
        more = f" (beside it, {listing(beside)})" if beside else ""
        sentences.append(
            f"{label(name)} sees no words, only gradients, and reaches {format_interval('mrr', rows[name])}{more}."
        )
    return sentences


def moves_it(table: dict[str, Any]) -> list[str]:
    """Which method finds the passages that move the model: who leads on tail-patch, and whether that is sure."""
    methods = table["methods"]
    rows = {name: row["tail_patch"] for name, row in methods.items() if "tail_patch" in row}
    if not set(rows) - {"gold"}:
        return ["The tail-patch was not measured in this run."]
    lead = best_methods(methods, "tail_patch")[0]
    other = "bm25" if lead != "bm25" else first_method(methods, "tail_patch", without=("bm25", "random"))
    text = f"Here {label(lead)} leads with {format_interval('tail_patch', rows[lead])}"
    if other in rows and other != lead:
        verdict = "do not overlap" if apart(rows[lead], rows[other]) else "overlap"
        text += f"; {label(other)} has {format_interval('tail_patch', rows[other])}, and the intervals {verdict}"
    yardsticks = [
        f"{what} give {format_value('tail_patch', rows[name][0])}"
        for name, what in (("gold", "the gold passages themselves"), ("random", "random ones"))
        if name in rows
    ]
    return [
        "Tail-patch asks another question: take one training step on each of a method's first ten passages, and see "
        "how far the probability of the answer rises.",
        f"{text}.",
        *([f"{upper(listing(yardsticks))}."] if yardsticks else []),
    ]


def where_better(table: dict[str, Any]) -> str | None:
    """The paired comparison of the main method with BM25, metric by metric."""
    rows = [row for row in table.get("comparisons", []) if row["against"] == "bm25" and row["metric"] in COLUMNS]
    if not rows:
        return None
    ahead = [metric_name(row["metric"]) for row in rows if row["difference"][1] > 0]
    behind = [metric_name(row["metric"]) for row in rows if row["difference"][2] < 0]
    even = [metric_name(row["metric"]) for row in rows if row["difference"][1] <= 0 <= row["difference"][2]]
    parts = [
        f"{verdict} on {listing(metrics)}"
        for verdict, metrics in (("ahead", ahead), ("behind", behind), ("not to be told apart", even))
        if metrics
    ]
    return f"Compared with BM25 question by question, {label(rows[0]['method'])} is {'; '.join(parts)}."


def first_method(methods: dict[str, Any], metric: str, without: Collection[str] = ()) -> str:
    """The first method of the table that has the metric; empty if there is none."""
    return next((name for name in ordered(list(methods)) if metric in methods[name] and name not in without), "")


def label(name: str) -> str:
    return LABELS.get(name, name)


def metric_name(metric: str) -> str:
    """A metric inside a sentence."""
    name = COLUMNS.get(metric, metric)
    return name if name.isupper() else name.lower()


def apart(a: list[float], b: list[float]) -> bool:
    return a[1] > b[2] or b[1] > a[2]


def listing(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def short(number: float) -> str:
    """12,345,678 -> 12.3M."""
    for power, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.3g}{unit}"
    return f"{number:,.0f}"


def seconds(value: float) -> str:
    """A duration: `9.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if value < 60:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
