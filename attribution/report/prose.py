"""The sentences of the page, written from the figures: nothing is claimed that the table does not show."""

from __future__ import annotations

from typing import Any

from headwater.attribution.evaluation.table import LABELS, format_interval, format_value, ordered
from headwater.attribution.report.figures import best_methods
from headwater.attribution.report.traced import probability

CEILING = 0.95


def deck(summary: dict[str, Any]) -> str:
    """What was done, in one sentence."""
    corpus, train, facts = summary["corpus"], summary["train"], summary["facts"]
    return (
        f"A language model was pretrained for {train['steps']:,} steps on {corpus['passages']:,} passages, "
        f"{corpus['injected']:,} of them planted to teach it facts about {facts['people']:,} invented people; then each of "
        f"{facts['queries']:,} questions was followed back through every passage to the ones that taught the answer, "
        "and to the steps at which they were seen."
    )


def key_figures(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, a second line) for the band under the header."""
    train, facts, index = summary["train"], summary["facts"], summary["index"]
    figures = [
        (
            f"{index['passages']:,}",
            "passages indexed" if index["passages"] != summary["corpus"]["passages"] else "passages, every one indexed",
            f"{index['dims']:,} dimensions, {index['bytes_per_passage']:,} bytes each",
        ),
        (short(train["tokens"]), "tokens read in training", f"loss {train['loss']:.2f} at the end"),
        (
            f"{probability(facts['target_prob_before'])} → {probability(facts['target_prob_after'])}",
            "probability of the right answer",
            "mean over all questions, before and after",
        ),
        (percent(facts["exact_match"]), "answered exactly", "in wordings not seen in training"),
    ]
    name, row = main_method(summary["methods"])
    if row:
        figures.append((format_value("mrr", row["mrr"][0]), f"MRR of {LABELS.get(name, name)}", "1 / rank of the first gold passage"))
        figures.append((percent(row["hit@10"][0]), "traced into the first ten", f"of {summary['corpus']['passages']:,} passages"))
    return figures


def main_method(methods: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    for name in ordered(list(methods)):
        if "mrr" in methods[name]:
            return name, methods[name]
    return "", {}


def states_it(methods: dict[str, Any]) -> list[str]:
    """Which method finds the passages that state the fact: plainly, BM25 first where it stands at the ceiling."""
    rows = {name: row["mrr"] for name, row in methods.items() if "mrr" in row}
    if not rows:
        return []
    sentences = []
    if "bm25" in rows:
        mean = rows["bm25"][0]
        if mean >= CEILING:
            sentences.append(
                f"BM25 stands at the ceiling, with an MRR of {format_value('mrr', mean)}, and nothing here claims to beat it: "
                "the planted passages state each fact literally, with the name and the answer that the question holds, so "
                "matching words finds them. It reads the question and the answer; it never looks at the model."
            )
        else:
            sentences.append(
                f"BM25, which matches words and never looks at the model, reaches an MRR of {format_interval('mrr', rows['bm25'])}."
            )
    name, row = main_method({key: value for key, value in methods.items() if key not in ("bm25", "random")})
    if row:
        sentence = f"{LABELS.get(name, name)} sees no words, only gradients, and reaches {format_interval('mrr', row['mrr'])}"
        others = [f"{LABELS[each]} {format_value('mrr', rows[each][0])}" for each in ("gradient_dot", "random") if each in rows]
        sentences.append(f"{sentence} ({', '.join(others)})." if others else f"{sentence}.")
    return sentences


def moves_it(table: dict[str, Any]) -> list[str]:
    """Which method finds the passages that move the model: tail-patch, with who leads and whether it is sure."""
    methods = table["methods"]
    rows = {name: row["tail_patch"] for name, row in methods.items() if "tail_patch" in row}
    if not rows:
        return ["The tail-patch was not measured in this run."]
    sentences = [
        "Tail-patch asks another question: take one training step on each of a method's first ten passages, and see how far "
        "the probability of the answer rises."
    ]
    best = best_methods(methods, "tail_patch")
    lead = best[0]
    text = f"Here {LABELS.get(lead, lead)} leads with {format_interval('tail_patch', rows[lead])}"
    other = "bm25" if lead != "bm25" else main_method({name: methods[name] for name in rows if name not in ("bm25", "random")})[0]
    if other in rows and other != lead:
        text += f"; {LABELS.get(other, other)} has {format_interval('tail_patch', rows[other])}"
        text += ", and the intervals do not overlap" if apart(rows[lead], rows[other]) else ", and the intervals overlap"
    sentences.append(text + ".")
    if "gold" in rows:
        sentences.append(
            f"The gold passages themselves give {format_value('tail_patch', rows['gold'][0])}, random ones "
            f"{format_value('tail_patch', rows['random'][0])}." if "random" in rows else
            f"The gold passages themselves give {format_value('tail_patch', rows['gold'][0])}."
        )
    return sentences


def where_better(table: dict[str, Any]) -> str | None:
    """The paired comparison of the main method with BM25, metric by metric."""
    rows = [row for row in table.get("comparisons", []) if row["against"] == "bm25"]
    if not rows:
        return None
    names = {"mrr": "MRR", "recall@10": "recall@10", "hit@10": "hit@10", "precision@10": "precision@10", "tail_patch": "tail-patch"}
    ahead = [names.get(row["metric"], row["metric"]) for row in rows if row["difference"][1] > 0]
    behind = [names.get(row["metric"], row["metric"]) for row in rows if row["difference"][2] < 0]
    even = [names.get(row["metric"], row["metric"]) for row in rows if row["difference"][1] <= 0 <= row["difference"][2]]
    label = LABELS.get(rows[0]["method"], rows[0]["method"])
    parts = [
        f"ahead on {listing(ahead)}" if ahead else "",
        f"behind on {listing(behind)}" if behind else "",
        f"not to be told apart on {listing(even)}" if even else "",
    ]
    return f"Compared with BM25 question by question, {label} is {', '.join(part for part in parts if part)}."


def apart(a: list[float], b: list[float]) -> bool:
    return a[1] > b[2] or b[1] > a[2]


def listing(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def short(number: float) -> str:
    """12,345,678 -> 12.3M."""
    for power, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            text = f"{number / power:.3g}"
            return f"{text}{unit}"
    return f"{number:,.0f}"


def seconds(value: float) -> str:
    """A duration: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if value < 60:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
