"""MDS shards of packed sequences: the one place that touches mosaicml-streaming's writer and readers.

A shard directory `NNNNN/` holds one MDS shard and its index.json; mosaicml's `merge_index` joins them into the
corpus's index.json, so the corpus can also be opened with `streaming.StreamingDataset`. Reading goes through
`MDSReader`, without StreamingDataset's shared memory and lock files: nothing that a killed process leaves behind can
stand in the way of the next.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.artifacts import atomic_path, fingerprint_file, make_directories, read_json, remove_if_empty
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


class ShardSet:
    """Random access to the sequences of a corpus directory, local or remote.

    Args:
        directory: holds manifest.json and index.json.
        shards: the manifest's `shards`: file, bytes, xxh3, sequences.
        remote: where the shard files are, if not in `directory`; they are fetched into `cache` when first used.
        cache: directory for fetched files, shared by the processes of a machine.
    """

    def __init__(
        self, directory: Path, shards: list[dict[str, Any]], *, remote: str = "", cache: Path | None = None
    ) -> None:
        self.directory, self.shards, self.remote = directory, shards, remote
        self.cache = cache or directory
        self.starts = np.concatenate([[0], np.cumsum([shard["sequences"] for shard in shards])]).astype(np.int64)
        self._readers: dict[int, Any] = {}
        self._asked: set[int] = set()
        self._fetchers: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, sequence: int) -> tuple[PackedSequence, list[str]]:
        """A sequence and the ids of its passages.

        Raises:
            IndexError: there is no such sequence.
            CorruptError, MissingError: its shard is damaged or gone; the error names the file.
        """
        if not 0 <= sequence < len(self):
            raise IndexError(f"sequence {sequence} of {len(self)}")
        shard = int(np.searchsorted(self.starts, sequence, side="right")) - 1
        if shard not in self._readers:
            self._readers[shard] = self._open(shard)
        sample = self._readers[shard][sequence - int(self.starts[shard])]
        packed = PackedSequence(sample["tokens"], sample["lengths"], sample["first_passage"])
        return packed, sample["passage_ids"]

    @property
    def is_remote(self) -> bool:
        """Whether shards are fetched before they are read."""
        return "://" in self.remote

    def prefetch(self, sequences: np.ndarray) -> None:
        """Starts to fetch the shards of sequences that will be read soon; returns at once.

        What goes wrong in the background comes up again, as an error, when the shard is read.
        """
        shards = set((np.searchsorted(self.starts, np.unique(sequences), side="right") - 1).tolist())
        for shard in sorted(shards - self._asked - self._readers.keys()):
            self._asked.add(shard)
            self._fetchers = self._fetchers or ThreadPoolExecutor(4, thread_name_prefix="fetch-shard")
            self._fetchers.submit(self._local_file, shard)

    def check_sizes(self) -> None:
        """Checks that every shard is there and as long as it was written; remote ones are left alone.

        Raises:
            CorruptError, MissingError: naming the first bad file.
        """
        if not self.is_remote:
            for entry in self.shards:
                check_size(Path(self.remote or self.directory) / entry["file"], entry)

    def verify(self) -> None:
        """Checks every shard's bytes against the manifest (remote ones are fetched).

        Raises:
            CorruptError, MissingError: naming the first bad file.
        """
        for shard in range(len(self.shards)):
            self._local_file(shard)

    def _open(self, shard: int) -> Any:
        streaming()
        from streaming.base.format.mds.reader import MDSReader

        path, index = self._local_file(shard), self.directory / "index.json"
        content = read_json(index, made_by="headwater corpus CONFIG")
        try:
            entry = content["shards"][shard]
            entry["raw_data"]["basename"] = path.name
            reader = MDSReader.from_json(str(path.parent), None, entry)
            if reader.size != self.shards[shard]["sequences"]:
                raise ValueError(f"{reader.size} sequences in shard {shard}")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(
                f"{index} does not describe the corpus's shards",
                got=repr(error),
                expected=f"{len(self.shards)} shards, number {shard} of {self.shards[shard]['sequences']} sequences",
                fix=MEND,
            ) from None
        return reader

    def _local_file(self, shard: int) -> Path:
        """The shard's file, fetched if need be, whose bytes have been checked."""
        entry = self.shards[shard]
        if not self.is_remote:
            local = Path(self.remote or self.directory) / entry["file"]
            check_file(local, entry)
            return local
        fetched = self.cache / entry["file"]
        with file_lock(fetched):
            try:
                check_file(fetched, entry)
            except (MissingError, CorruptError):  # not fetched yet, or damaged since
                fetch(f"{self.remote.rstrip('/')}/{entry['file']}", fetched)
                check_file(fetched, entry)
        return fetched


MEND = "restore the file, or remove the corpus directory and build it again"


def check_file(path: Path, entry: dict[str, Any]) -> None:
    """Compares a file with its manifest entry {file, bytes, xxh3}.

    Raises:
        MissingError, CorruptError: naming the file.
    """
    check_size(path, entry)
    found = fingerprint_file(path)
    if found != entry["xxh3"]:
        raise CorruptError(f"shard {path} is corrupt", got=f"xxh3 {found}", expected=f"xxh3 {entry['xxh3']}", fix=MEND)


def check_size(path: Path, entry: dict[str, Any]) -> None:
    """The part of `check_file` that reads nothing."""
    if not path.exists():
        raise MissingError(f"shard {path} is missing", expected=f"{entry['bytes']} bytes", fix=MEND)
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CorruptError(
            f"shard {path} is truncated or grown", got=f"{size} bytes", expected=f"{entry['bytes']} bytes", fix=MEND
        )


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds a lock beside `path` that the kernel releases when its holder dies; its file goes when it is given back."""
    name = path.with_name(path.name + ".lock")
    lock, made = take_lock(name)
    with lock:
        try:
            yield
        finally:
            if is_file_at(lock.fileno(), name):
                name.unlink()
            remove_if_empty(made)


def take_lock(name: Path) -> tuple[IO[str], list[Path]]:
    """A file that this process alone has locked, and the directories that were made for it."""
    made: list[Path] = []
    while True:
        made += make_directories(name.parent)
        try:
            lock = open(name, "w")  # noqa: SIM115 (kept open while it is held)
        except FileNotFoundError:
            continue  # the one before removed the directory that it had made
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_file_at(lock.fileno(), name):
            return lock, made
        lock.close()  # the one before removed it while this process waited


def is_file_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that stands at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


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


def process_count() -> int:
    """Processes that this machine allows."""
    return len(os.sched_getaffinity(0))
