"""Shards that were downloaded, kept within a number of bytes: the one unused for longest goes first.

Beside each shard that was fetched under a limit lies a file SHARD.fetched with its size, made before the shard is: what
has none (an original, or what somebody else put there) is not counted and never removed. Its time is that of the last
use by any process of the machine, so that with `corpus.window` the shards behind the window are those that go. Whoever
reads needs no lock: a shard that another process has dropped under its hands is fetched again.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from headwater.configs.errors import UserError
from headwater.train.locks import file_lock

NOTE = ".fetched"


@dataclass(frozen=True, slots=True)
class ShardCache:
    """A directory NNNNN/FILE of fetched shards.

    directory: where they are put.
    limit: bytes that they may take together, those included that are being fetched; 0 sets none.
    """

    directory: Path
    limit: int = 0

    def check_room(self, needed: int, what: str) -> None:
        """Refuses a limit that what is read at one time does not fit into: each read would download a shard anew.

        Raises:
            UserError: with the least limit.
        """
        if self.limit and needed > self.limit:
            raise UserError(
                "corpus.cache_bytes is too small for this corpus",
                got=f"{self.limit:,} bytes",
                expected=f"at least {needed:,} bytes: {what}",
                fix="raise corpus.cache_bytes, or lower corpus.window",
            )

    def make_room(self, file: Path, size: int) -> None:
        """Drops what was unused for longest until a file of `size` bytes fits, and keeps its place."""
        if not self.limit:
            return
        with file_lock(self.directory / "room"):
            self._note(file, size)
            held = []
            for note in self.directory.glob(f"*/*{NOTE}"):
                with contextlib.suppress(OSError, ValueError):  # another process's, going or being written
                    held.append((note.stat().st_mtime_ns, int(note.read_text()), note))
            taken = sum(each for _, each, _ in held)
            for _, each, note in sorted(held):
                if taken <= self.limit:
                    break
                shard = note.with_name(note.name.removesuffix(NOTE))
                if shard == file:
                    continue
                # The shard first: a process killed in between leaves a note, which the next one finds.
                shard.unlink(missing_ok=True)
                note.unlink(missing_ok=True)
                taken -= each

    def arrived(self, file: Path, size: int) -> None:
        """Notes that a file has been fetched: a slow one may have lost its place meanwhile."""
        if self.limit:
            self._note(file, size)

    def used(self, file: Path) -> None:
        """Notes that a file is being read."""
        if self.limit:
            with contextlib.suppress(FileNotFoundError):  # an original, or dropped since
                os.utime(note_of(file))

    @staticmethod
    def _note(file: Path, size: int) -> None:
        note = note_of(file)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(str(size))


def note_of(file: Path) -> Path:
    """The file that says that a shard was downloaded, and how long it is."""
    return file.with_name(file.name + NOTE)
