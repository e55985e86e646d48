"""The documents and the questions of a seed.

The task is whatever text of one kind of document brings: here the Factbook's sections on economies. Some of these
documents are held out; the passages of one half of them choose, those of the other half judge. Of the documents that
are trained on, a share has its words in random order, as pages have that were made for search engines: all of the words
of the real thing, and nothing to be learnt from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs.errors import UserError
from headwater.launch.studies.selection.settings import (
    SHUFFLED,
    SelectionSettings,
    choosing_file,
    documents_file,
    judging_file,
)
from headwater.train.artifacts import json_line, write_bytes
from headwater.train.corpus.documents import Document, read_documents
from headwater.train.corpus.settings import SourceSettings

PROMPT_WORDS, TARGET_WORDS = 6, 18


def write_data(seed: Path, number: int, settings: SelectionSettings, sources: Iterable[SourceSettings]) -> None:
    """Writes a seed's documents and questions, unless they are there.

    Raises:
        UserError: the sources have too few documents.
    """
    if judging_file(seed).exists():
        return
    every = [document for source in sources for document in read_documents(source)]
    rng = np.random.default_rng([number, 0x5E1])
    held_out, corpus = divided(every, settings, rng)
    lines = (json_line({"id": document.id, "text": document.text}) for document in corpus)
    write_bytes(documents_file(seed), "".join(lines).encode())
    half = len(held_out) // 2
    for path, documents in ((choosing_file(seed), held_out[:half]), (judging_file(seed), held_out[half:])):
        found = [question for document in documents for question in questions(document)]
        if len(found) < settings.asked:
            fix = "lower asked=, or raise held_out="
            raise UserError("the task has too few questions", got=len(found), expected=settings.asked, fix=fix)
        places = sorted(rng.permutation(len(found))[: settings.asked].tolist())
        write_bytes(path, "".join(json_line(found[place]) for place in places).encode())


def divided(
    every: Sequence[Document], settings: SelectionSettings, rng: np.random.Generator
) -> tuple[list[Document], list[Document]]:
    """Documents that are held out for questions, and those of the corpus, some of them shuffled.

    Raises:
        UserError: there are too few.
    """
    asked_of = [place for place, document in enumerate(every) if re.search(settings.task, document.id)]
    if len(asked_of) <= settings.held_out or len(every) < settings.held_out + settings.documents:
        raise UserError(
            "the corpus has too few documents",
            got=f"{len(every)} documents, {len(asked_of)} of them match task={settings.task}",
            expected=f"more than held_out={settings.held_out} of the task, and documents={settings.documents} others",
            fix="lower them, or give further corpus.sources",
        )
    out = rng.permutation(asked_of)[: settings.held_out].tolist()
    rest = np.setdiff1d(np.arange(len(every)), out)
    taken = rng.permutation(rest)[: settings.documents].tolist()
    broken = round(settings.shuffled * len(taken))
    corpus = [shuffled(every[place], rng) for place in taken[:broken]] + [every[place] for place in taken[broken:]]
    return [every[place] for place in out], corpus


def shuffled(document: Document, rng: np.random.Generator) -> Document:
    """The document with its words in random order."""
    words = document.text.split()
    return Document(SHUFFLED + document.id, " ".join(words[place] for place in rng.permutation(len(words))))


def questions(document: Document) -> Iterator[dict[str, Any]]:
    """A document's text in pieces of so many words each: the first ones are the prompt, the others the target."""
    words, size = document.text.split(), PROMPT_WORDS + TARGET_WORDS
    for place, start in enumerate(range(0, len(words) - size + 1, size)):
        piece = words[start : start + size]
        yield {
            "example_id": f"{document.id}:{place}",
            "prompt": " ".join(piece[:PROMPT_WORDS]),
            "target": " ".join(piece[PROMPT_WORDS:]),
        }
