"""Tokenised documents on disk: the first half of a build, in parts that do not depend on how many processes made them.

A part is a directory with `tokens.npy` (uint32, the documents one after the other, no beginning tokens),
`lengths.npy` (int32, tokens of each passage), `owners.npy` (int32, the document of each passage, counted in the part)
and `documents.json` (their ids).
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from headwater.train.artifacts import atomic_path
from headwater.train.stream.documents import Document, read_documents
from headwater.train.stream.passages import PassageCutter
from headwater.train.stream.settings import SourceSettings
from headwater.train.stream.tokenizer import TextTokenizer

PART_CHARACTERS = 4_000_000
"""Characters of text in a part, about."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part, its tokens memory-mapped."""

    tokens: np.ndarray
    lengths: np.ndarray
    owners: np.ndarray
    documents: list[str]

    @classmethod
    def open(cls, path: Path) -> Part:
        documents = json.loads((path / "documents.json").read_text(encoding="utf-8"))
        tokens, lengths, owners = (
            np.load(path / f"{name}.npy", mmap_mode="r") for name in ("tokens", "lengths", "owners")
        )
        return cls(tokens, lengths, owners, documents)


def chosen_documents(source: SourceSettings, seed: int, limit: int | None = None) -> Iterator[Document]:
    """A source's documents in its order: all, or the `limit` (default: its own) that the seed chooses."""
    limit = source.documents if limit is None else limit
    if not limit:
        yield from read_documents(source)
        return

    def keyed() -> Iterator[tuple[int, int, Document]]:
        for place, document in enumerate(read_documents(source)):
            yield xxhash.xxh3_64_intdigest(document.id, seed=seed), place, document

    for _, _, document in sorted(heapq.nsmallest(limit, keyed(), key=lambda each: each[:2]), key=lambda each: each[1]):
        yield document


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in runs of about `PART_CHARACTERS`; where a run ends depends on the documents alone."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= PART_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_part(path: Path, documents: list[Document], tokenizer: TextTokenizer, cutter: PassageCutter) -> None:
    """Tokenises and cuts documents; the part appears whole or not at all."""
    encoded = tokenizer.encode_batch([document.text for document in documents])
    lengths = [np.diff(cutter.cuts(tokens)) for tokens in encoded]
    with atomic_path(path) as part:
        part.mkdir()
        np.save(part / "tokens.npy", np.concatenate(encoded).astype(np.uint32))
        np.save(part / "lengths.npy", np.concatenate(lengths).astype(np.int32))
        np.save(
            part / "owners.npy", np.repeat(np.arange(len(encoded)), [len(each) for each in lengths]).astype(np.int32)
        )
        (part / "documents.json").write_text(json.dumps([document.id for document in documents]), encoding="utf-8")


class Gathered:
    """All passages of several parts under one numbering (part by part, document by document), read by random access."""

    def __init__(self, paths: list[Path]) -> None:
        self.parts = [Part.open(path) for path in paths]
        self.starts = np.concatenate([[0], np.cumsum([len(part.lengths) for part in self.parts])]).astype(np.int64)
        self.lengths = np.concatenate([np.zeros(0, dtype=np.int32), *(part.lengths for part in self.parts)])
        self.documents = sum(len(part.documents) for part in self.parts)
        self._offsets = [np.concatenate([[0], np.cumsum(part.lengths, dtype=np.int64)]) for part in self.parts]
        self._firsts = [np.searchsorted(part.owners, part.owners) for part in self.parts]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, passage: int) -> tuple[int, int]:
        place = int(np.searchsorted(self.starts, passage, side="right")) - 1
        return place, passage - int(self.starts[place])

    def tokens(self, passage: int) -> np.ndarray:
        """Tokens of a passage without the beginning token: uint32 [n]."""
        part, local = self.locate(passage)
        offsets = self._offsets[part]
        return self.parts[part].tokens[offsets[local] : offsets[local + 1]]

    def identity(self, passage: int) -> tuple[str, str]:
        """The document of a passage, and the passage's id `document#k`."""
        part, local = self.locate(passage)
        document = self.parts[part].documents[int(self.parts[part].owners[local])]
        return document, f"{document}#{local - int(self._firsts[part][local])}"
