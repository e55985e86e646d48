"""The one place that meets mosaicml-streaming: its MDS writer and reader, its index tool, its object stores.

A shard directory `NNNNN/` holds one MDS shard and its index.json; mosaicml's `merge_index` joins them into the
corpus's index.json, so the corpus can also be opened with `streaming.StreamingDataset`. Reading goes through
`MDSReader`, without StreamingDataset's shared memory and lock files: nothing that a killed process leaves behind can
stand in the way of the next.
"""

from __future__ import annotations

import threading
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
SHARD_FILE = "shard.00000.mds"


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """A sequence as it is stored.

    tokens: uint32 [sum of lengths], passages one after the other, each with its beginning token.
    lengths: int32 [passages].
    first_passage: number of the first passage; the others follow it.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    first_passage: int


def streaming() -> Any:
    """The `streaming` package; imported late because it takes seconds."""
    declare_torchvision_operators()
    import streaming

    return streaming


def write_shard(directory: Path, sequences: Iterable[tuple[PackedSequence, list[str]]]) -> None:
    """Writes one shard (sequences with their passage ids) into a directory that appears whole or not at all."""
    # The writer closes, and with it flushes its last shard, before the directory is renamed.
    with (
        atomic_path(directory) as part,
        streaming().MDSWriter(out=str(part), columns=COLUMNS, size_limit=None) as writer,
    ):
        for sequence, passage_ids in sequences:
            sample = {"tokens": sequence.tokens.astype(np.uint32), "lengths": sequence.lengths.astype(np.int32)}
            writer.write({**sample, "first_passage": sequence.first_passage, "passage_ids": passage_ids})


def merge_indexes(directory: Path, shards: list[str]) -> None:
    """Writes `directory`/index.json over the shard directories in it, by mosaicml's own tool."""
    streaming()
    from streaming.base.util import merge_index

    with quiet():
        merge_index([str(directory / shard / "index.json") for shard in shards], str(directory))


def open_reader(path: Path, entry: dict[str, Any]) -> Any:
    """mosaicml's reader of one local shard file; `entry` is its description in a corpus's index.json."""
    streaming()
    from streaming.base.format.mds.reader import MDSReader

    if dict(zip(entry["column_names"], entry["column_encodings"], strict=True)) != COLUMNS:
        raise ValueError(f"columns {entry['column_names']} of {entry['column_encodings']}")
    entry["raw_data"]["basename"] = path.name
    return MDSReader.from_json(str(path.parent), None, entry)


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
    streaming()
    from streaming.base.storage.download import CloudDownloader

    try:
        with atomic_path(local) as part:
            downloader = CloudDownloader.get(remote)
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
    streaming()
    from streaming.base.storage.upload import CloudUploader

    try:
        uploader = CloudUploader.get((str(local), remote), keep_local=True, exist_ok=True)
        for file in files:
            uploader.upload_file(file)
    except Exception as error:  # each store's client raises its own kinds
        raise UserError(
            f"the corpus cannot be uploaded to {remote}",
            got=f"{type(error).__name__}: {error}",
            fix="check the address, the credentials and, for an S3-compatible store, S3_ENDPOINT_URL",
        ) from error
