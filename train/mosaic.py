"""The one place that meets mosaicml-streaming: its MDS writer and reader, its index tool, its object stores.

A shard directory `NNNNN/` holds one MDS shard and its index.json; mosaicml's `merge_index` joins them into the
corpus's index.json, so the corpus can also be opened with `streaming.StreamingDataset`. Reading goes through
`MDSReader`, without StreamingDataset's shared memory and lock files: nothing that a killed process leaves behind can
stand in the way of the next.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs.errors import UserError
from headwater.train.artifacts import atomic_path
from headwater.train.compat import declare_torchvision_operators

COLUMNS = {"tokens": "ndarray:uint32", "lengths": "ndarray:int32", "first_passage": "int", "passage_ids": "json"}
COUNTED = {"counted": "ndarray:uint8"}
"""The further column of a shard in which some tokens carry no loss."""
SHARD_FILE = "shard.00000.mds"


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """A sequence as it is stored.

    tokens: uint32 [sum of lengths], passages one after the other, each with its beginning token.
    lengths: int32 [passages].
    first_passage: number of the first passage; the others follow it.
    counted: bool [sum of lengths], the tokens that carry loss where it comes to predicting them; None: all.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    first_passage: int
    counted: np.ndarray | None = None


@functools.cache
def part_of(name: str) -> Any:
    """A module of mosaicml-streaming, `streaming.base.NAME`, without what its packages import beside it.

    `import streaming` takes two seconds, since it imports datasets of texts, images and videos and with them
    transformers and torchvision. The two packages stand empty while the module is imported; whoever imports
    `streaming` afterwards has it whole.
    """
    with _IMPORTING:
        declare_torchvision_operators()
        packages = ("streaming", "streaming.base")
        if packages[0] in sys.modules:
            return importlib.import_module(f"streaming.base.{name}")
        spec = importlib.util.find_spec("streaming")
        assert spec is not None
        assert spec.submodule_search_locations
        try:
            for package in packages:
                module = types.ModuleType(package)
                below = package.split(".")[1:]
                module.__path__ = [os.path.join(place, *below) for place in spec.submodule_search_locations]
                sys.modules[package] = module
            # `util` and `format` import each other, which goes well in this order alone.
            importlib.import_module("streaming.base.format")
            return importlib.import_module(f"streaming.base.{name}")
        finally:
            for package in packages:
                sys.modules.pop(package, None)


_IMPORTING = threading.Lock()


def write_shard(
    directory: Path, sequences: Iterable[tuple[PackedSequence, list[str]]], *, masked: bool = False
) -> None:
    """Writes one shard (sequences with their passage ids) into a directory that appears whole or not at all.

    Args:
        masked: the sequences say which tokens carry loss.
    """
    columns = COLUMNS | COUNTED if masked else COLUMNS
    # The writer closes, and with it flushes its last shard, before the directory is renamed.
    with (
        atomic_path(directory) as part,
        part_of("format.mds.writer").MDSWriter(out=str(part), columns=columns, size_limit=None) as writer,
    ):
        for sequence, passage_ids in sequences:
            sample = {"tokens": sequence.tokens.astype(np.uint32), "lengths": sequence.lengths.astype(np.int32)}
            if sequence.counted is not None:
                sample["counted"] = sequence.counted.astype(np.uint8)
            writer.write({**sample, "first_passage": sequence.first_passage, "passage_ids": passage_ids})


def merge_indexes(directory: Path, shards: list[str]) -> None:
    """Writes `directory`/index.json over the shard directories in it, by mosaicml's own tool."""
    with quiet():
        part_of("util").merge_index([str(directory / shard / "index.json") for shard in shards], str(directory))


def open_reader(path: Path, entry: dict[str, Any]) -> Any:
    """mosaicml's reader of one local shard file; `entry` is its description in a corpus's index.json."""
    columns = dict(zip(entry["column_names"], entry["column_encodings"], strict=True))
    if columns not in (COLUMNS, COLUMNS | COUNTED):
        raise ValueError(f"columns {entry['column_names']} of {entry['column_encodings']}")
    entry["raw_data"]["basename"] = path.name
    return part_of("format.mds.reader").MDSReader.from_json(str(path.parent), None, entry)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps mosaicml's remarks about its temporary folders (logged as warnings) off the terminal.

    One thread at a time: what is disabled is disabled for the whole process.
    """
    import logging

    with _QUIET:
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


_QUIET = threading.Lock()


def fetch(remote: str, local: Path) -> None:
    """Downloads a file (s3://, gs://, ... as mosaicml-streaming supports); it appears whole or not at all.

    Raises:
        UserError: it cannot be downloaded.
    """
    try:
        with atomic_path(local) as part:
            downloader = part_of("storage.download").CloudDownloader.get(remote)
            downloader.download(remote, str(part), timeout=300)
            downloader.clean_up()
    except UserError:
        raise
    except Exception as error:  # each store's client raises its own kinds
        raise UserError(
            f"{remote} cannot be downloaded",
            got=f"{type(error).__name__}: {error}",
            fix="check the address, the credentials and, for an S3-compatible store, S3_ENDPOINT_URL",
        ) from error


def upload(local: Path, files: list[str], remote: str) -> None:
    """Uploads files (paths below `local`) to the same paths below `remote`.

    Raises:
        UserError: one cannot be uploaded.
    """
    try:
        uploader = part_of("storage.upload").CloudUploader.get((str(local), remote), keep_local=True, exist_ok=True)
        for file in files:
            uploader.upload_file(file)
    except Exception as error:  # each store's client raises its own kinds
        raise UserError(
            f"the corpus cannot be uploaded to {remote}",
            got=f"{type(error).__name__}: {error}",
            fix="check the address, the credentials and, for an S3-compatible store, S3_ENDPOINT_URL",
        ) from error
