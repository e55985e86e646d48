"""An index in an object store: sent as a whole, and searched from a directory that holds all of it but the rows.

    headwater index send runs/demo/index/headwater s3://BUCKET/demo
    headwater index fetch s3://BUCKET/demo runs/demo-index        # all but the rows
    headwater trace trace/default index=runs/demo-index queries=q.jsonl out=t.jsonl    # rows come as they are needed

In the store index.json is sent last and removed first, so that what has one is whole; files.json before it names what
belongs to it. In the directory `remote.json` says where the rows are: a shard that is asked for is fetched into
`fetched/`, held against the hash in shards.parquet, and kept; the next one is fetched meanwhile. With a limit those
that no process of the machine has used for longest go.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwater.attribution.index.errors import ChangedBytesError, MissingShardError
from headwater.attribution.index.manifest import read_manifest
from headwater.attribution.index.records import ShardRecord, read_shard_table
from headwater.attribution.index.shards import ShardFile
from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.configs.sizes import bytes_of
from headwater.train.artifacts import (
    atomic_path,
    fingerprint_file,
    read_json,
    remove_parts,
    require_empty,
    write_json,
)
from headwater.train.locks import file_lock
from headwater.train.remote import Store, do_each, open_store
from headwater.train.stream.cache import ShardCache

LEAST = 4
"""Shards that a limit must have room for: of two codecs the one that is read and the one that comes."""
TRIES = 5
"""Times that a shard is fetched which others drop before it is open."""
INDEX, FILES, REMOTE, ROWS, FETCHED = "index.json", "files.json", "remote.json", "rows-", "fetched"


def send(directory: Path, address: str) -> int:
    """Sends a finished index, with the corpus that it may keep; returns how many files.

    Raises:
        UserError: it is not finished, or the address is none of a store.
        StoreError: the store cannot be reached; what has arrived is no index until it is sent again.
    """
    store = open_store(address)
    if not read_manifest(directory)["complete"]:
        raise UserError(f"the index {directory} is incomplete", fix="run `headwater index` again to finish it first")
    if (directory / REMOTE).exists():
        raise UserError(f"the rows of {directory} lie in a store already", got=read_json(directory / REMOTE)["address"])
    names = [name for name in _files(directory) if name != INDEX]
    store.remove([INDEX])
    do_each(lambda name: store.put(directory / name, name), names)
    store.write(FILES, json.dumps(names).encode())
    store.put(directory / INDEX, INDEX)
    return len(names) + 1


def _files(directory: Path) -> Iterator[str]:
    """Names of the index's files below its directory."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.name.endswith((".lock", ".lock.held", ".part")):
            yield path.relative_to(directory).as_posix()


def fetch(address: str, directory: Path, cache_bytes: str = "") -> int:
    """Makes a directory that is searched as the index is; returns how many files have come.

    Args:
        directory: new, or empty.
        cache_bytes: what rows may take of the disk, `200GB`; empty: all.

    Raises:
        UserError: the directory holds something, or the limit is too small for a scan.
        MissingError: there is no whole index at that address.
        StoreError: the store cannot be reached; no directory is left.
    """
    store = open_store(address)
    try:
        limit = bytes_of(cache_bytes)
    except ValueError as error:
        what = "cache_bytes is no size"
        raise UserError(what, got=error, expected="bytes with a unit, 200GB for example") from None
    require_empty(directory)
    names = [name for name in _listed(store) if not name.startswith(ROWS)]
    with atomic_path(directory) as part:
        store.get_all(names, part)
        read_manifest(part)
        least = LEAST * max((record.bytes for record in read_shard_table(part)), default=0)
        if limit and limit < least:
            got, expected = f"{limit:,} bytes", f"at least {least:,} bytes: {LEAST} shards"
            raise UserError("cache_bytes is too small for this index", got=got, expected=expected)
        write_json(part / REMOTE, {"address": store.address, "cache_bytes": limit})
    return len(names)


def _listed(store: Store) -> list[str]:
    """Names of the files of a whole index."""
    listed = store.read(FILES) if store.read(INDEX) is not None else None
    if listed is None:
        what = f"{store.address} holds no index"
        raise MissingError(what, fix="`headwater index send DIR ADDRESS` puts one there")
    try:
        names = json.loads(listed)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{store.address}/{FILES} is not valid JSON", got=error, fix="send it again") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise CorruptError(f"{store.address}/{FILES} is no list of names", fix="send it again")
    return [*names, INDEX]


class RemoteShards:
    """The rows of an index that lie in a store; safe to ask from several threads, and from the processes of a machine.

    Args:
        directory: of the index, with its remote.json.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        noted: dict[str, Any] = read_json(directory / REMOTE)
        self.store, self.cache = Store(noted["address"]), ShardCache(directory, int(noted["cache_bytes"]))
        self._lock = threading.Lock()
        self._records: dict[str, ShardRecord] = {}

    @classmethod
    def of(cls, directory: Path) -> RemoteShards | None:
        """Those of an index directory; None where its rows are its own."""
        return cls(directory) if (directory / REMOTE).exists() else None

    def file(self, name: str) -> Path:
        """Where a shard lies that was there a moment ago: another process may drop it for one of its own.

        Raises:
            StoreError: it cannot be fetched.
            ChangedBytesError: it is not what was sent.
        """
        file = self.directory / FETCHED / name
        if not file.exists():
            with file_lock(file):  # who comes second waits, and finds it
                if not file.exists():
                    self._fetch(self._record(name), file)
        self.cache.used(file)
        return file

    def opened(self, name: str) -> ShardFile:
        """A shard, mapped: it stays readable when its file is dropped; raises as `file`."""
        for _ in range(TRIES):
            try:
                return ShardFile(self.file(name))
            except MissingShardError:
                continue
        fix = "give the rows more room, or fetch the index into a directory for each job"
        raise UserError(f"{name} was dropped again before it was open, {TRIES} times", fix=fix)

    def ahead(self, name: str) -> None:
        """Fetches a shard in the background. What fails is said when it is needed."""

        def work() -> None:
            try:
                self.file(name)
            except (UserError, OSError):
                return

        if not (self.directory / FETCHED / name).exists():
            threading.Thread(target=work, daemon=True, name="shard-ahead").start()

    def _record(self, name: str) -> ShardRecord:
        with self._lock:
            if not self._records:
                self._records = {record.file: record for record in read_shard_table(self.directory)}
            if name not in self._records:
                raise CorruptError(f"{self.directory}/shards.parquet knows no {name}", fix="fetch the index again")
            return self._records[name]

    def _fetch(self, record: ShardRecord, file: Path) -> None:
        self.cache.make_room(file, record.bytes)
        remove_parts(file.parent, of=f"{file.name}.*")  # of a killed process
        with atomic_path(file) as part:
            self.store.get(record.file, part)
            if (got := fingerprint_file(part)) != record.xxh3:
                what, fix = f"{self.store.address}/{record.file} is not the file that was sent", "send the index again"
                raise ChangedBytesError(what, got=got, expected=record.xxh3, fix=fix)
        self.cache.arrived(file, record.bytes)
