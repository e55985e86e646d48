"""An index in an object store: sent as a whole, and searched from a directory that holds all of it but the rows.

    headwater index send runs/demo/index/headwater s3://BUCKET/demo
    headwater index fetch s3://BUCKET/demo runs/demo-index        # all but the rows
    headwater trace trace/default index=runs/demo-index queries=q.jsonl out=t.jsonl    # rows come as they are needed

In the store index.json is sent last and removed first, so that what has one is whole. In the directory `remote.json`
says where the rows are: a shard that is asked for and is not there is fetched, held against the hash in
shards.parquet, and kept; the next one is fetched meanwhile. With a limit those that were asked for longest ago go.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwater.attribution.index.errors import ChangedBytesError
from headwater.attribution.index.manifest import read_manifest
from headwater.attribution.index.records import ShardRecord, read_shard_table
from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.configs.sizes import bytes_of
from headwater.train.artifacts import atomic_path, fingerprint_file, read_json, require_empty, write_json
from headwater.train.remote import SCHEME, Store, do_each

KEPT = 4
"""Shards that stay whatever the limit: those that are being read and fetched."""
INDEX, REMOTE, ROWS = "index.json", "remote.json", "rows-"


def send(directory: Path, address: str) -> int:
    """Sends a finished index, with the corpus that it may keep; returns how many files.

    Raises:
        UserError: it is not finished, or the address is none of a store.
        StoreError: the store cannot be reached; what has arrived is no index until it is sent again.
    """
    store = _store(address)
    if not read_manifest(directory)["complete"]:
        raise UserError(f"the index {directory} is incomplete", fix="run `headwater index` again to finish it first")
    if (directory / REMOTE).exists():
        raise UserError(f"the rows of {directory} lie in a store already", got=read_json(directory / REMOTE)["address"])
    names = [name for name in _files(directory) if name != INDEX]
    store.remove([INDEX])
    do_each(lambda name: store.put(directory / name, name), names)
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
        UserError: the directory holds something.
        MissingError: there is no whole index at that address.
        StoreError: the store cannot be reached; no directory is left.
    """
    store = _store(address)
    try:
        limit = bytes_of(cache_bytes)
    except ValueError as error:
        raise UserError(
            "cache_bytes is no size", got=error, expected="bytes with their unit, 200GB for example"
        ) from None
    require_empty(directory)
    if store.read(INDEX) is None:
        raise MissingError(f"{address} holds no index", fix="`headwater index send DIR ADDRESS` puts one there")
    names = [name for name in store.names() if not name.startswith(ROWS)]
    with atomic_path(directory) as part:
        for name in names:
            if not (part / name).resolve().is_relative_to(part.resolve()):
                raise CorruptError(f"{address} names {name}, which lies outside of it")
            (part / name).parent.mkdir(parents=True, exist_ok=True)
        do_each(lambda name: store.get(name, part / name), names)
        read_manifest(part)
        write_json(part / REMOTE, {"address": store.address, "cache_bytes": limit})
    return len(names)


def _store(address: str) -> Store:
    if not address.startswith(SCHEME):
        raise UserError("that is no address of an object store", got=address, expected=f"{SCHEME}BUCKET/PREFIX")
    return Store(address)


class RemoteShards:
    """The rows of an index that lie in a store; safe to ask from several threads and processes.

    Args:
        directory: of the index, with its remote.json.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        noted: dict[str, Any] = read_json(directory / REMOTE)
        self.store, self.limit = Store(noted["address"]), int(noted["cache_bytes"])
        self._records: dict[str, ShardRecord] = {}
        self._lock = threading.Lock()
        self._coming: dict[str, threading.Lock] = {}
        self._asked: dict[str, None] = {}

    @classmethod
    def of(cls, directory: Path) -> RemoteShards | None:
        """Those of an index directory; None where its rows are its own."""
        return cls(directory) if (directory / REMOTE).exists() else None

    def need(self, name: str) -> None:
        """Waits until a shard's file is in the directory.

        Raises:
            StoreError: it cannot be fetched.
            ChangedBytesError: it is not what was sent.
        """
        with self._lock:
            self._asked.pop(name, None)
            self._asked[name] = None
            coming = self._coming.setdefault(name, threading.Lock())
        with coming:
            if not (self.directory / name).exists():
                self._fetch(self._record(name))

    def ahead(self, name: str) -> None:
        """Fetches a shard in the background. What fails is said when it is needed."""

        def work() -> None:
            try:
                self.need(name)
            except UserError:
                return

        if not (self.directory / name).exists():
            threading.Thread(target=work, daemon=True, name="shard-ahead").start()

    def _record(self, name: str) -> ShardRecord:
        with self._lock:
            if not self._records:
                self._records = {record.file: record for record in read_shard_table(self.directory)}
            return self._records[name]

    def _fetch(self, record: ShardRecord) -> None:
        self._make_room(record.bytes)
        with atomic_path(self.directory / record.file) as part:
            self.store.get(record.file, part)
            if (got := fingerprint_file(part)) != record.xxh3:
                what, fix = f"{self.store.address}/{record.file} is not the file that was sent", "send the index again"
                raise ChangedBytesError(what, got=got, expected=record.xxh3, fix=fix)

    def _make_room(self, size: int) -> None:
        """Removes shards, those first that nobody here has asked for, then those asked for longest ago. Who has one
        mapped goes on reading it."""
        if not self.limit:
            return
        with self._lock:
            held = {path.name: path.stat().st_size for path in self.directory.glob(f"{ROWS}*.safetensors")}
            order = sorted(held.keys() - self._asked.keys()) + [name for name in self._asked if name in held]
            left = sum(held.values())
            for name in order[:-KEPT]:
                if left + size <= self.limit:
                    return
                left -= held[name]
                (self.directory / name).unlink(missing_ok=True)
