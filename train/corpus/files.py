"""The files of a source, and how they are divided among the processes that read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.artifacts import read_json
from headwater.train.corpus.settings import SourceSettings
from headwater.train.corpus.wordnet import wordnet_files

SAMPLED_BYTES = 65_536

UNIT_BYTES = 64_000_000
"""What one process reads at a time, about; as it lies on disk."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """A file, or a stretch of it: bytes of whole lines, or row groups of Parquet.

    start, stop: the stretch; no stop: the whole file.
    before: records of the file that stand before it.
    """

    path: Path
    start: int = 0
    stop: int | None = None
    before: int = 0


def whole_files(source: SourceSettings) -> Iterator[FileRange]:
    """Each file of a source, whole.

    Raises:
        MissingError, UserError: as `source_files` and `dataset_files`.
    """
    yield from map(FileRange, read_files(source))


def read_files(source: SourceSettings) -> list[Path]:
    """The files of a source in the order in which they are read; the installed package's are not named."""
    if source.kind == "factbook":
        return [Path()]
    return dataset_files(source) if source.kind == "huggingface" else source_files(source)


def units_of(source: SourceSettings) -> list[list[FileRange]]:
    """A source divided, in order, into units of about `UNIT_BYTES`; the division depends on the files alone."""
    if source.kind == "factbook":
        return [[FileRange(Path())]]
    units: list[list[FileRange]] = []
    room = 0
    for path in read_files(source):
        ranges = list(divided(source.kind, path))
        # A file that is not there is said when it is read.
        size = path.stat().st_size // len(ranges) if path.exists() else 0
        for each in ranges:
            if room < size or not units:
                units.append([])
                room = UNIT_BYTES
            units[-1].append(each)
            room -= size
    return units


def divided(kind: str, path: Path) -> Iterator[FileRange]:
    """A file in stretches of about `UNIT_BYTES`, where it can be entered in the middle."""
    import pyarrow as pa

    try:
        if path.stat().st_size > UNIT_BYTES and kind == "parquet":
            yield from row_group_ranges(path)
        elif path.stat().st_size > UNIT_BYTES and kind == "jsonl" and path.suffix not in COMPRESSED:
            yield from line_ranges(path)
        else:
            yield FileRange(path)
    except (OSError, pa.ArrowException):  # is said when it is read
        yield FileRange(path)


def line_ranges(path: Path) -> Iterator[FileRange]:
    start = before = 0
    with open(path, "rb") as file:
        while block := file.read(UNIT_BYTES):
            block += file.readline()
            yield FileRange(path, start, start + len(block), before)
            start += len(block)
            # Lines as Python's text files count them.
            before += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")


def row_group_ranges(path: Path) -> Iterator[FileRange]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    start = before = rows = taken = 0
    for group, size in enumerate(sizes):
        rows, taken = rows + metadata.row_group(group).num_rows, taken + size
        if taken >= UNIT_BYTES or group + 1 == len(sizes):
            yield FileRange(path, start, group + 1, before)
            start, before, taken = group + 1, rows, 0
    if not sizes:
        yield FileRange(path)


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
    """The files of a source, sorted by path.

    Raises:
        MissingError: there are none.
        UserError: one is named in bytes that are not UTF-8, or looks like documents in another form: it would be passed
            over.
    """
    if source.kind == "wordnet":
        return wordnet_files(source.root)
    root = source.root
    suffixes = SUFFIXES[source.kind]
    if root.is_file():
        return [root]
    there = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    files = [path for path in there if path.name.endswith(suffixes)]
    if not files:
        raise MissingError(
            f"corpus source {source.path!r} ({source.kind}) has no files",
            expected=f"a file, or a directory with files ending in {' or '.join(suffixes)}",
            fix="correct the source's path (or its kind)",
        )
    for path in files:
        if not is_unicode(str(path.relative_to(root))):
            what = f"a file of corpus source {source.path!r} has a name that is not UTF-8"
            raise UserError(what, got=os.fsencode(path.name), fix="rename it")
    missed = [path for path in there if is_document_in_another_form(path, source.kind)]
    if missed:
        name = missed[0].relative_to(root)
        raise UserError(
            f"corpus source {source.path!r} ({source.kind}) also holds {name}, which is not read",
            got=f"{len(missed)} such files" if len(missed) > 1 else None,
            expected=f"files ending in {' or '.join(suffixes)}",
            fix="convert or rename it, or take it out of the directory (documents of one file: give its path)",
        )
    return files


def is_document_in_another_form(path: Path, kind: str) -> bool:
    """Whether a file that a kind of source does not read was probably meant to be read."""
    if path.name.endswith(SUFFIXES[kind]) or path.name.startswith((".", "_")):
        return False
    return path.suffix in COMPRESSED or path.suffix in RELATIVES.get(kind, ())


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no surrogate without its other half."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def dataset_files(source: SourceSettings) -> list[Path]:
    """The Arrow files of a dataset written by `datasets.Dataset.save_to_disk`.

    For a `DatasetDict`, give the path of one of its splits.

    Raises:
        MissingError: there is no such dataset.
    """
    root = Path(source.path)
    state = root / "state.json"
    if not state.is_file():
        splits = sorted(path.parent.name for path in root.glob("*/state.json"))
        fix = f"give one of its splits: {', '.join(str(root / split) for split in splits)}" if splits else None
        raise MissingError(
            f"{root} is not a dataset saved by save_to_disk: it has no state.json",
            expected="the directory that save_to_disk wrote, or one split of a DatasetDict",
            fix=fix or "correct the source's path",
        )
    return arrow_files(state)


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


SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.bz2", ".jsonl.zst"),
    "parquet": (".parquet",),
    "huggingface": (".arrow",),
    "text": (".txt", ".md"),
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".tar", ".7z")
RELATIVES: dict[str, tuple[str, ...]] = {
    "jsonl": (".json", ".ndjson", ".jsonlines"),
    "parquet": (".pq", ".parq"),
    "text": (".text", ".markdown"),
}
"""How files end that are probably documents of a source, in a form that it does not read."""
