"""Object stores of S3's protocol, spoken to by boto3, which mosaicml-streaming brings along; so are the variables:
S3_ENDPOINT_URL for a store that is not Amazon's, and AWS's own for credentials and retries.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from headwater.configs.errors import CorruptError, UserError

T = TypeVar("T")

TIMEOUT_S = 60
"""Seconds without a byte after which a request is given up, and tried again as AWS_MAX_ATTEMPTS says."""

STREAMS = 4
"""Files under way at a time."""

SCHEME = "s3://"

DIGEST = "xxh3"
"""An object's note of what its file's bytes hash to."""


class StoreError(UserError):
    """A store that cannot be reached, or refuses."""


class Store:
    """Objects under `s3://BUCKET/PREFIX`, by names below it. A client is made when it is first needed.

    Raises:
        StoreError: by every method.
    """

    def __init__(self, address: str) -> None:
        parts = urlparse(address)
        self.address, self.bucket, self.prefix = address.rstrip("/"), parts.netloc, parts.path.strip("/")
        self._made: Any = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            import boto3
            from botocore.config import Config

            config = Config(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S)
            endpoint = os.environ.get("S3_ENDPOINT_URL")
            self._made = boto3.session.Session().client("s3", config=config, endpoint_url=endpoint)
        return self._made

    def put(self, local: Path, name: str, wanted: Callable[[], bool] = lambda: True, digest: str = "") -> None:
        """Sends a file, checksums and all, and looks whether the store has as many bytes of it as it had at first: one
        that is added to meanwhile may be longer. Breaks off, as an error, once it is not `wanted` any longer. Its own
        digest is kept beside it, for `holds`."""

        def look(_: int) -> None:
            if not wanted():
                raise InterruptedError("it is not wanted any longer")

        with self._asking(f"{name} cannot be sent to"):
            size, key, config = local.stat().st_size, self._key(name), self._one_after_the_other()
            noted = {"Metadata": {DIGEST: digest}} if digest else None
            self._client.upload_file(str(local), self.bucket, key, ExtraArgs=noted, Callback=look, Config=config)
            found = self._client.head_object(Bucket=self.bucket, Key=key)["ContentLength"]
            if found < size:
                raise OSError(f"{found:,} of {size:,} bytes have arrived")

    def holds(self, local: Path, name: str, digest: str) -> bool:
        """Whether an object that is there was sent with a file's digest and has all of its bytes: what was cut short on
        the way carries the digest as well."""
        with self._asking(f"{name} cannot be looked at in"):
            found = self._client.head_object(Bucket=self.bucket, Key=self._key(name))
            return found["Metadata"].get(DIGEST) == digest and found["ContentLength"] == local.stat().st_size

    def copy(self, name: str, to: str, digest: str) -> None:
        """Makes an object of another one's bytes, which do not leave the store."""
        with self._asking(f"{name} cannot be copied to {to} in"):
            noted = {"Metadata": {DIGEST: digest}, "MetadataDirective": "REPLACE"}
            source, config = {"Bucket": self.bucket, "Key": self._key(name)}, self._one_after_the_other()
            self._client.copy(source, self.bucket, self._key(to), ExtraArgs=noted, Config=config)

    def get(self, name: str, local: Path) -> None:
        """Fetches an object into a file; there is none afterwards where this fails."""
        with self._asking(f"{name} cannot be fetched from"):
            self._client.download_file(self.bucket, self._key(name), str(local), Config=self._one_after_the_other())

    def get_all(self, names: Sequence[str], directory: Path, below: str = "") -> None:
        """Fetches the objects under `below` (empty, or with a `/` at its end) into files of their names, `STREAMS` at a
        time.

        Raises:
            CorruptError: a name leads out of the directory, or nowhere; nothing is fetched.
        """
        for name in names:
            try:
                inside = (directory / name).resolve().is_relative_to(directory.resolve())
            except ValueError:  # no path at all: a zero byte, half a character
                inside = False
            if not inside:
                raise CorruptError(f"{f'{self.address}/{below}'.rstrip('/')} names {name!r}, which is no file below it")
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        do_each(lambda name: self.get(f"{below}{name}", directory / name), names)

    def read(self, name: str) -> bytes | None:
        """A small object; None if there is none."""
        with self._asking(f"{name} cannot be read in"):
            try:
                return self._client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Makes a small object."""
        with self._asking(f"{name} cannot be written in"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

    def remove(self, names: list[str]) -> None:
        with self._asking("objects cannot be removed from"):
            for name in names:
                self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def names(self, below: str = "") -> list[str]:
        """Names of all objects that begin with `below`."""
        with self._asking("objects cannot be listed in"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(below))
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key.removeprefix(self._key("")) for key in keys]

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @staticmethod
    def _one_after_the_other() -> Any:
        """Parts of a file in this thread: threads of s3transfer outlive a process that would end."""
        from boto3.s3.transfer import TransferConfig

        return TransferConfig(use_threads=False)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # boto3, botocore, s3transfer and urllib3 raise their own kinds
            raise StoreError(
                f"{what} {self.address}",
                got=f"{type(error).__name__}: {error}",
                fix="check the address, the credentials and, for an S3-compatible store, S3_ENDPOINT_URL",
            ) from None


def open_store(address: str) -> Store:
    """The store at an address that a user gives.

    Raises:
        UserError: it is none.
    """
    if not re.fullmatch(rf"{SCHEME}[^/]+/.*[^/]/?", address):
        expected = f"{SCHEME}BUCKET/PREFIX"
        raise UserError("that is no address of an object store", got=address, expected=expected)
    return Store(address)


def attempted(action: Callable[[], T], say: Callable[[str], None]) -> T | None:
    """Does something with a store; where it cannot be reached, says so and returns None."""
    try:
        return action()
    except StoreError as error:
        say(f"{error.what} ({error.got})")
        return None


def do_each(action: Callable[[str], None], names: Iterable[str]) -> None:
    """Does something with every name, `STREAMS` at a time; the first error ends it, and is raised.

    The threads are not a pool's: a process that ends waits for those, however long a file takes.
    """
    left, errors = deque(names), list[BaseException]()

    def work() -> None:
        while left and not errors:
            try:
                action(left.popleft())
            except IndexError:
                return  # another has taken the last
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(STREAMS, len(left)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        left.clear()
    if errors:
        raise errors[0]
