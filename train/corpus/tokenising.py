"""Reads, tokenises and cuts the documents of every source, in as many processes as `corpus.workers` says.

The unit of work is a stretch of a source's files; each becomes one part or more, and a note with their number when it
is done. What the parts hold, and their order, depends on the files alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwater.train.artifacts import read_json, write_json
from headwater.train.corpus.documents import Document
from headwater.train.corpus.encoding import end_of
from headwater.train.corpus.files import FileRange, units_of
from headwater.train.corpus.parts import batches, chosen_documents, write_part
from headwater.train.corpus.passages import PassageCutter
from headwater.train.corpus.pools import run_jobs
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.corpus.writing import Progress
from headwater.train.tokenizer import TextTokenizer


def write_parts(directory: Path, corpus: CorpusSettings, tokenizer_file: Path, progress: Progress) -> list[list[Path]]:
    """Tokenises every source; returns the parts of each, in order. Units that an earlier build has done stay."""
    units: list[list[str]] = []

    def jobs() -> Iterator[tuple[Any, ...]]:
        for number in range(len(corpus.sources)):
            units.append([])
            for each, (ranges, documents) in enumerate(units_to_read(corpus, number)):
                name = f"{number:03d}-{each:06d}"
                units[-1].append(name)
                if not (directory / f"{name}.json").exists():
                    progress(f"tokenising source {number}, unit {each}")
                    yield directory, name, number, ranges, documents, str(tokenizer_file), corpus

    run_jobs(unit_job, jobs(), corpus.workers, corpus.engine)
    return [
        [directory / f"{name}-{part:04d}" for name in names for part in range(read_json(directory / f"{name}.json"))]
        for names in units
    ]


def units_to_read(corpus: CorpusSettings, number: int) -> Iterator[tuple[list[FileRange], list[Document] | None]]:
    """The units of a source: stretches of files to be read, or documents. A given number of documents is chosen by
    looking at all of them, here."""
    source = corpus.sources[number]
    if source.documents:
        for documents in batches(chosen_documents(source, corpus.seed)):
            yield [], documents
    else:
        for ranges in units_of(source):
            yield ranges, None


def unit_job(
    directory: Path,
    name: str,
    number: int,
    ranges: list[FileRange],
    documents: list[Document] | None,
    tokenizer_file: str,
    corpus: CorpusSettings,
) -> None:
    """Writes the parts `NAME-0000`, ... of one unit, then `NAME.json` with their number."""
    tokenizer = TextTokenizer.from_file(tokenizer_file)
    cutter = PassageCutter(tokenizer, corpus.max_tokens, corpus.min_tokens)
    if documents is None:
        read = batches(chosen_documents(corpus.sources[number], corpus.seed, ranges=ranges))
    else:
        read = iter([documents])
    count = 0
    for count, batch in enumerate(read, start=1):
        path = directory / f"{name}-{count - 1:04d}"
        if not path.exists():
            write_part(path, batch, tokenizer, cutter, end_of(tokenizer, corpus), masked=corpus.masked)
    write_json(directory / f"{name}.json", count)
