"""What a tokenizer is trained on: all documents, or so much of them, spread over the sources and their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import xxhash

from headwater.configs.sizes import bytes_of
from headwater.train.corpus.files import COMPRESSED, read_files, units_of
from headwater.train.corpus.parts import chosen_documents
from headwater.train.corpus.settings import CorpusSettings, SourceSettings

UNPACKED = 4
"""Text of a compressed file by its size on disk, about."""

SPREAD = 32
"""Units of a source that a sample is taken from, at least where there are so many."""


def tokenizer_texts(corpus: CorpusSettings) -> Iterator[str]:
    """The texts: `tokenizer.sample` documents of each source; else all, where they are not more than
    `tokenizer.sample_bytes`; else of each source its share of these, from units of its files that the seed chooses."""
    limit, room = corpus.tokenizer.sample, bytes_of(corpus.tokenizer.sample_bytes)
    sizes = [0 if source.documents else text_bytes(source) for source in corpus.sources]
    whole = limit or not room or sum(sizes) <= room
    for number, (source, size) in enumerate(zip(corpus.sources, sizes, strict=True)):
        if whole or not size:
            few = min(limit, source.documents) if limit and source.documents else limit or source.documents
            for document in chosen_documents(source, corpus.seed, few):
                yield document.text
        else:
            yield from sampled_texts(source, corpus.seed, number, room * size // sum(sizes))


def sampled_texts(source: SourceSettings, seed: int, number: int, room: int) -> Iterator[str]:
    """Texts of about `room` characters in all, a bounded number of them from each unit of the source's files."""
    units = units_of(source)
    keyed = sorted((xxhash.xxh3_64_intdigest(f"{number} {k}", seed=seed), k) for k in range(len(units)))
    most = max(1, room // min(SPREAD, len(units)))
    for _, k in keyed:
        left = min(most, room)
        for document in chosen_documents(source, seed, ranges=units[k]):
            yield document.text
            left, room = left - len(document.text), room - len(document.text)
            if left <= 0:
                break
        if room <= 0:
            return


def text_bytes(source: SourceSettings) -> int:
    """Bytes of a source's text, about; 0 of the installed package, which is small."""
    return sum(text_bytes_of(source, path) for path in read_files(source)) if source.kind != "factbook" else 0


def text_bytes_of(source: SourceSettings, path: Path) -> int:
    if not path.is_file():  # is said when it is read
        return 0
    packed = source.kind == "parquet" or path.suffix in COMPRESSED
    return int(path.stat().st_size * (UNPACKED if packed else 1) * source.share)
