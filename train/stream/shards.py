"""The shards of a corpus, read by random access: fetched if they lie in an object store, and checked before use."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs.errors import CorruptError, MissingError
from headwater.train.artifacts import fingerprint_file, read_json
from headwater.train.locks import file_lock
from headwater.train.mosaic import PackedSequence, fetch, open_reader
from headwater.train.stream.cache import ShardCache
from headwater.train.stream.verified import once_a_machine


class ShardSet:
    """Random access to the sequences of a corpus directory, local or remote.

    Args:
        directory: holds manifest.json and index.json.
        shards: the manifest's `shards`: file, bytes, xxh3, sequences.
        remote: where the shard files are, if not in `directory`; they are fetched into `cache` when first used.
        cache: directory for fetched files, shared by the processes of a machine.
        cache_bytes: what the fetched files may take; 0 sets no limit.

    Raises:
        UserError: not even one shard fits into `cache_bytes`.
    """

    def __init__(
        self,
        directory: Path,
        shards: list[dict[str, Any]],
        *,
        remote: str = "",
        cache: Path | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.directory, self.shards, self.remote = directory, shards, remote
        self.cache = ShardCache(cache or directory, cache_bytes)
        if self.is_remote:
            self.check_room(1)
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
        try:
            sample = self._sample(shard, sequence - int(self.starts[shard]))
            counted = sample["counted"].astype(bool) if "counted" in sample else None
            packed = PackedSequence(sample["tokens"], sample["lengths"], sample["first_passage"], counted)
            return packed, sample["passage_ids"]
        except (
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            OSError,
        ) as error:  # its bytes were compared
            raise self._misdescribed(shard, error) from None

    def _sample(self, shard: int, place: int) -> dict[str, Any]:
        """What is stored at a place of a shard."""
        for attempt in itertools.count(1):
            if shard not in self._readers:
                self._readers[shard] = self._open(shard)
            try:
                sample = self._readers[shard][place]
                self.cache.used(self._fetched_file(shard))
                return sample
            except FileNotFoundError:
                if not self.is_remote or attempt == REFETCHES:
                    raise
                del self._readers[shard]  # another process needed its room
        raise AssertionError

    @property
    def is_remote(self) -> bool:
        """Whether shards are fetched before they are read."""
        return "://" in self.remote

    def check_room(self, shards: int) -> None:
        """Refuses a cache into which not even so many shards fit.

        Raises:
            UserError: with the least `corpus.cache_bytes`.
        """
        sizes = sorted((entry["bytes"] for entry in self.shards), reverse=True)
        few = sizes[:shards]
        self.cache.check_room(sum(few), f"the {len(few)} shards of {len(sizes)} that are in use at one time")

    def prefetch(self, sequences: np.ndarray) -> None:
        """Starts to fetch the shards of sequences that will be read soon, in their order; returns at once.

        What goes wrong in the background comes up again, as an error, when the shard is read. Within a limit, no more
        is asked for than half of it holds: the rest is for what is being read.
        """
        shards = np.searchsorted(self.starts, sequences, side="right") - 1
        room = self.cache.limit // 2
        for shard in dict.fromkeys(shards.tolist()):
            if self.cache.limit:
                room -= self.shards[shard]["bytes"]
                if room < 0:
                    break
                self.cache.used(self._fetched_file(shard))
                needless = shard in self._asked or self._fetched_file(shard).exists()
            else:
                needless = shard in self._asked or shard in self._readers
            if not needless:
                self._asked.add(shard)
                self._fetchers = self._fetchers or ThreadPoolExecutor(4, thread_name_prefix="fetch-shard")
                self._fetchers.submit(self._fetch_ahead, shard)

    def _fetch_ahead(self, shard: int) -> None:
        try:
            self._local_file(shard)
        finally:
            if self.cache.limit:  # it may be dropped, and needed in another epoch
                self._asked.discard(shard)

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
        for shard, entry in enumerate(self.shards):
            check_file(self._local_file(shard), entry)

    @cached_property
    def _index(self) -> Any:
        """index.json, which describes every shard: parsed once."""
        return read_json(self.directory / "index.json", made_by="headwater corpus CONFIG")

    def _open(self, shard: int) -> Any:
        path = self._local_file(shard)
        try:
            reader = open_reader(path, self._index["shards"][shard])
            if reader.size != self.shards[shard]["sequences"]:
                raise ValueError(f"{reader.size} sequences in shard {shard}")
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise self._misdescribed(shard, error) from None
        return reader

    def _misdescribed(self, shard: int, error: Exception) -> CorruptError:
        return CorruptError(
            f"{self.directory / 'index.json'} does not describe the corpus's shards",
            got=repr(error),
            expected=f"{len(self.shards)} shards, number {shard} of {self.shards[shard]['sequences']} sequences",
            fix=MEND,
        )

    def _local_file(self, shard: int) -> Path:
        """The shard's file, fetched if need be, whose bytes have been checked on this machine."""
        entry = self.shards[shard]
        if not self.is_remote:
            local = Path(self.remote or self.directory) / entry["file"]
            check_once(local, entry)
            return local
        fetched = self._fetched_file(shard)
        with file_lock(fetched):
            try:
                check_once(fetched, entry)
            except (MissingError, CorruptError, FileNotFoundError):  # not fetched yet, damaged since, or just dropped
                self.cache.make_room(fetched, entry["bytes"])
                fetch(f"{self.remote.rstrip('/')}/{entry['file']}", fetched)
                self.cache.arrived(fetched, entry["bytes"])
                check_once(fetched, entry)
        return fetched

    def _fetched_file(self, shard: int) -> Path:
        """Where a shard lies once it is fetched."""
        return self.cache.directory / self.shards[shard]["file"]


REFETCHES = 20
"""Times that a shard may be dropped by other processes between being fetched and being read."""

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


def check_once(path: Path, entry: dict[str, Any]) -> None:
    """`check_file`, whose bytes are read only where no process of this machine has compared them."""
    check_size(path, entry)
    once_a_machine(path, entry["xxh3"], lambda: check_file(path, entry))


def check_size(path: Path, entry: dict[str, Any]) -> None:
    """The part of `check_file` that reads nothing."""
    if not path.exists():
        raise MissingError(f"shard {path} is missing", expected=f"{entry['bytes']} bytes", fix=MEND)
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CorruptError(
            f"shard {path} is truncated or grown", got=f"{size} bytes", expected=f"{entry['bytes']} bytes", fix=MEND
        )
