"""Tokenised documents on disk: the first half of a build, in parts that do not depend on how many processes made them.

A part is a directory with `tokens.npy` (uint32, the documents one after the other, no beginning tokens), `ends.npy`
(int64, where passages begin and end), `owners.npy` and `ordinals.npy` (int32, the document of each passage, counted in
the part, and its place among that document's passages), `ids.npy` and `id_ends.npy` (the documents' ids, UTF-8),
`id_hashes.npy` (uint64, xxh3 of each). Where some tokens may carry no loss there is `counted.npy` too (bool, those that
do); where documents bring columns along, `columns.arrow` (a row a document).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from headwater.train.artifacts import atomic_path
from headwater.train.corpus.documents import Document, read_documents
from headwater.train.corpus.encoding import encode_documents, encode_masked
from headwater.train.corpus.files import FileRange
from headwater.train.corpus.passages import PassageCutter
from headwater.train.corpus.settings import SourceSettings
from headwater.train.stream.column_types import as_columns
from headwater.train.tokenizer import TextTokenizer

PART_CHARACTERS = 16_000_000
"""Characters of text in a part, about."""
COLUMNS = "columns.arrow"


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage to be packed.

    tokens: uint32 [n], without the beginning token.
    counted: bool [n], the tokens that carry loss; None: all.
    first: it is its document's first.
    columns: what its document brings along.
    """

    document: str
    id: str
    tokens: np.ndarray
    counted: np.ndarray | None = None
    first: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A part, its arrays memory-mapped."""

    tokens: np.ndarray
    ends: np.ndarray
    owners: np.ndarray
    ordinals: np.ndarray
    ids: np.ndarray
    id_ends: np.ndarray
    id_hashes: np.ndarray
    counted: np.ndarray | None = None
    columns: Any = None

    @classmethod
    def open(cls, path: Path) -> Part:
        files = {each.name: path / f"{each.name}.npy" for each in fields(cls) if each.name != "columns"}
        if not files["counted"].exists():
            del files["counted"]
        columns = open_columns(path / COLUMNS) if (path / COLUMNS).exists() else None
        return cls(**{name: np.load(file, mmap_mode="r") for name, file in files.items()}, columns=columns)

    @property
    def documents(self) -> int:
        return len(self.id_ends) - 1

    def document(self, number: int) -> str:
        """The id of a document."""
        return bytes(self.ids[self.id_ends[number] : self.id_ends[number + 1]]).decode()

    def piece(self, number: int) -> Piece:
        """A passage, copied out of the part."""
        document = self.document(int(self.owners[number]))
        mine = slice(self.ends[number], self.ends[number + 1])
        counted = np.array(self.counted[mine]) if self.counted is not None else None
        ordinal, brought = int(self.ordinals[number]), {}
        if self.columns is not None:
            owner = int(self.owners[number])
            brought = {name: self.columns[name][owner].as_py() for name in self.columns.column_names}
        return Piece(document, f"{document}#{ordinal}", np.array(self.tokens[mine]), counted, ordinal == 0, brought)


def chosen_documents(
    source: SourceSettings, seed: int, limit: int | None = None, *, ranges: Sequence[FileRange] | None = None
) -> Iterator[Document]:
    """A source's documents in its order: all, or those that the seed chooses.

    Args:
        limit: how many at most; by default the source's own `documents`. They are held in memory.
        ranges: the stretches of its files that are read; all by default.
    """
    limit = source.documents if limit is None else limit
    bound = int(source.share * 2.0**64)

    def keyed() -> Iterator[tuple[int, int, Document]]:
        for place, document in enumerate(read_documents(source, ranges)):
            key = xxhash.xxh3_64_intdigest(document.id, seed=seed)
            if key < bound:
                yield key, place, document

    if not limit:
        yield from (document for _, _, document in keyed())
        return
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


def write_part(
    path: Path,
    documents: list[Document],
    tokenizer: TextTokenizer,
    cutter: PassageCutter,
    end: int | None = None,
    *,
    masked: bool = False,
) -> None:
    """Tokenises and cuts documents, each with the token `end` after it; the part appears whole or not at all.

    Args:
        masked: note which tokens carry loss.
    """
    counted: list[np.ndarray] = []
    if masked:
        encoded, counted = encode_masked(tokenizer, documents, end)
    else:
        encoded = encode_documents(tokenizer, [document.text for document in documents], end)
    cuts = [cutter.cuts(tokens) for tokens in encoded]
    names = [document.id.encode() for document in documents]
    pieces = np.array([len(each) - 1 for each in cuts])
    arrays = {
        "tokens": np.concatenate(encoded).astype(np.uint32),
        "ends": ends_of(np.concatenate([np.diff(each) for each in cuts])),
        "owners": np.repeat(np.arange(len(cuts)), pieces).astype(np.int32),
        "ordinals": np.concatenate([np.arange(count) for count in pieces]).astype(np.int32),
        "ids": np.frombuffer(b"".join(names), dtype=np.uint8),
        "id_ends": ends_of(np.array([len(name) for name in names])),
        "id_hashes": np.array([xxhash.xxh3_64_intdigest(name) for name in names], dtype=np.uint64),
        **({"counted": np.concatenate(counted)} if masked else {}),
    }
    with atomic_path(path) as part:
        part.mkdir()
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        if any(document.columns for document in documents):
            save_columns(part / COLUMNS, documents)


def save_columns(path: Path, documents: Sequence[Document]) -> None:
    import pyarrow as pa

    table = pa.table(as_columns([document.columns for document in documents]))
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


def open_columns(path: Path) -> Any:
    """The columns of a part, memory-mapped."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def ends_of(lengths: np.ndarray) -> np.ndarray:
    """Where things of these lengths begin and end when laid one after the other: int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class Gathered:
    """All passages of several parts under one numbering (part by part, document by document).

    One part is open at a time: a memory map keeps a descriptor, and there may be more parts than a process may have.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        counts = [(len(part.owners), part.documents) for part in self.opened()]
        self.starts = ends_of(np.array([passages for passages, _ in counts], dtype=np.int64))
        self.documents = sum(documents for _, documents in counts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def opened(self) -> Iterator[Part]:
        """The parts, one after the other; what is kept of one must be copied."""
        return map(Part.open, self.paths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every passage, without the beginning token: int32 [passages]."""
        lengths = np.empty(len(self), dtype=np.int32)
        for start, part in zip(self.starts.tolist(), self.opened(), strict=False):
            lengths[start : start + len(part.owners)] = np.diff(part.ends)
        return lengths

    @cached_property
    def first(self) -> np.ndarray:
        """Whether a passage is its document's first: bool [passages]."""
        first = np.empty(len(self), dtype=bool)
        for start, part in zip(self.starts.tolist(), self.opened(), strict=False):
            first[start : start + len(part.owners)] = part.ordinals[:] == 0
        return first

    def drawn(self, share: float, seed: int) -> np.ndarray:
        """The passages of so large a share of the documents, by a hash of their ids: bool [passages]."""
        drawn = np.zeros(len(self), dtype=bool)
        limit = int(share * 2.0**64)
        for start, part in zip(self.starts.tolist(), self.opened() if limit else (), strict=False):
            keys = [xxhash.xxh3_64_intdigest(part.document(k), seed=hashed_seed(seed)) for k in range(part.documents)]
            held = np.array([key < limit for key in keys], dtype=bool)
            drawn[start : start + len(part.owners)] = held[part.owners[:]]
        return drawn

    def gather(self, numbers: np.ndarray) -> list[Piece]:
        """Passages by number, in that order; read part by part."""
        found: list[Piece | None] = [None] * len(numbers)
        places = np.searchsorted(self.starts, numbers, side="right") - 1
        by_part = np.argsort(places, kind="stable")
        bounds = np.searchsorted(places[by_part], np.arange(len(self.paths) + 1))
        for number in np.unique(places).tolist():
            part = Part.open(self.paths[number])
            for place in by_part[bounds[number] : bounds[number + 1]].tolist():
                found[place] = part.piece(int(numbers[place] - self.starts[number]))
        return [piece for piece in found if piece is not None]


def hashed_seed(seed: int) -> int:
    """A seed of draws that have nothing to do with those of `chosen_documents`."""
    return xxhash.xxh3_64_intdigest(f"held out {seed}")


@lru_cache(maxsize=1)
def gathered(paths: tuple[Path, ...]) -> Gathered:
    """The parts, counted once per process."""
    return Gathered(paths)
