"""How a passage and what is known of it are put into words: excerpts, marked words, probabilities, steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from headwater.attribution.drawing.chart import Axis


def probability(value: float) -> str:
    """A probability to two decimals; `<.01` rather than a zero that is none."""
    if 0 < value < 0.005:
        return "<.01"
    if 0.995 <= value < 1:
        return ">.99"
    return f"{value:.2f}".replace("0.", ".", 1)


def seen_view(steps: Sequence[int], axis: Axis) -> dict[str, Any]:
    ordered = sorted(int(step) for step in steps)
    if not ordered:
        return {"marks": [], "words": "never seen in training"}
    times = "once" if len(ordered) == 1 else f"{len(ordered)} times"
    where = f"at step {ordered[0]:,}" if len(ordered) == 1 else f"steps {ordered[0]:,} to {ordered[-1]:,}"
    return {"marks": [axis.place(step) for step in ordered], "words": f"seen {times}, {where}"}


def pattern(phrase: str) -> str:
    """A regular expression for a phrase as whole words, whatever its white space."""
    words = phrase.split()
    return r"(?<!\w)" + r"\s+".join(re.escape(word) for word in words) + r"(?!\w)" if words else ""


_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Controls, marks that turn the direction of what follows, separators of lines, halves of surrogate pairs."""


def clean(text: str) -> str:
    """A text whose every character is shown: what would act on the page instead becomes a replacement character."""
    return _UNSHOWN.sub("�", text)


def excerpt(text: str, target: str, characters: int) -> str:
    """At most `characters` of a passage, around the first place where the target stands (or from its beginning)."""
    text = clean(text).strip()
    if len(text) <= characters:
        return text
    found = re.search(pattern(target), text, re.IGNORECASE) if target.strip() else None
    start = max(0, min(found.start() - characters // 3, len(text) - characters)) if found else 0
    end = min(len(text), start + characters)
    return ("… " if start else "") + text[start:end].strip() + (" …" if end < len(text) else "")


def highlight(text: str, target: str, subject: str = "", shared: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Cuts a text into (kind, piece), of kind `text`, `target`, `subject` or `shared`, which join to the text again.

    Args:
        shared: runs of words, longest first.
    """
    phrases = [("target", target), ("subject", subject)]
    wanted = [(kind, pattern(phrase)) for kind, phrase in phrases if phrase.split()]
    if shared:
        wanted.append(("shared", "|".join(pattern(phrase) for phrase in shared)))
    if not wanted:
        return [("text", text)]
    expression = "|".join(f"(?P<{kind}>{each})" for kind, each in wanted)
    pieces, end = [], 0
    for found in re.finditer(expression, text, re.IGNORECASE):
        if found.start() > end:
            pieces.append(("text", text[end : found.start()]))
        pieces.append((str(found.lastgroup), found.group()))
        end = found.end()
    if end < len(text):
        pieces.append(("text", text[end:]))
    return pieces
