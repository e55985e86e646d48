"""What processes do in test_huggingface_index: the `headwater` command, and builds of an index that take their time."""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

SECONDS = 0.5
"""A shard takes so long: a build that is killed is in the middle of it, and ranks end one after the other."""


def command(arguments: list[str], directory: str) -> int:
    """`headwater ARGUMENTS`; what it prints goes to files `out` and `err`."""
    from headwater.launch.cli import main

    here = Path(directory)
    with open(here / "out", "w") as out, open(here / "err", "w") as err:  # noqa: SIM117
        with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", ["headwater", *arguments]):
            try:
                main()
            except SystemExit as ended:
                return int(ended.code or 0)
    return 0


def build(arguments: list[str], slow_rank: int | None = None) -> int:
    """`python -m headwater.attribution.index ARGUMENTS`; slow on one rank, or on all."""
    from headwater.attribution.index.__main__ import main
    from headwater.attribution.index.writer import IndexWriter

    write = IndexWriter.write

    def slow(self: IndexWriter, *given: object) -> None:
        time.sleep(SECONDS)
        write(self, *given)

    is_slow = slow_rank in (None, int(os.environ["RANK"]))
    with mock.patch.object(IndexWriter, "write", slow if is_slow else write):
        return main(arguments)


def failing(arguments: list[str], rank: int) -> int:
    """A build in which one rank's disk is full when it writes rows."""
    from headwater.attribution.index.__main__ import main
    from headwater.attribution.index.writer import IndexWriter

    write = IndexWriter.write

    def write_or_fail(self: IndexWriter, *given: object) -> None:
        if int(os.environ["RANK"]) == rank:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        write(self, *given)

    with mock.patch.object(IndexWriter, "write", write_or_fail):
        return main(arguments)
