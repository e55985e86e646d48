"""Checks a finished index against what it says of itself: hashes, coverage, fingerprints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from headwater.attribution.index.errors import ChangedBytesError, CoverageError, MissingShardError
from headwater.attribution.index.id_tables import require_lookup
from headwater.attribution.index.manifest import NORMS, TABLES
from headwater.attribution.index.reader import Index
from headwater.attribution.index.records import ShardRecord, read_shard_table
from headwater.attribution.index.shards import ShardFile
from headwater.attribution.rows.checks import require_finite
from headwater.configs.errors import MissingError
from headwater.train.artifacts import fingerprint_file

NORMS_TOGETHER = 1 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """What was checked and found right."""

    passages: int
    shards: int
    bytes: int
    codecs: list[str]


def verify(path: str | os.PathLike[str]) -> Verified:
    """Reads every byte of an index once.

    Raises:
        IncompleteIndexError: its build has not finished.
        MissingShardError, TruncatedShardError, ChangedBytesError: a file is not what was written.
        CoverageError: a passage is missing or present twice.
        MismatchError: the settings or the curvature are not those of the recorded fingerprint.
        NonFiniteRowsError: a stored norm is not finite.
    """
    index = Index(path)
    if not index.complete:
        raise index.incomplete()
    _ = index.whitening  # compares its fingerprint
    for name in TABLES:
        require_hash(index.path / name, index.manifest["tables"][name])
    require_lookup(index.path, index.passages)
    records = read_shard_table(index.path)
    for codec in index.codecs:
        ranges = [(record.start, record.stop) for record in records if record.codec == codec]
        require_each_once(f"codec {codec}", ranges, index.passages)
    return Verified(index.passages, len(records), sum(check_shard(index, each) for each in records), index.codecs)


def check_shard(index: Index, record: ShardRecord) -> int:
    """Checks one shard file; returns its bytes."""
    path = index.file(record.file)
    with ShardFile(path) as shard:
        expected = record.stop - record.start
        if shard.rows != expected:
            raise CoverageError(f"shard {path} has the wrong number of rows", got=shard.rows, expected=expected)
        require_hash(path, record.xxh3)
        for start in range(0, shard.rows, NORMS_TOGETHER):
            stop = min(start + NORMS_TOGETHER, shard.rows)
            norms_N2 = torch.stack([shard.tensor(name, start, stop) for name in NORMS], dim=1)
            require_finite(norms_N2, record.start + start, f"norms in {path}")
            shard.let_go(start, stop)
    return path.stat().st_size


def require_hash(path: Path, expected: str) -> None:
    """Refuses a file whose bytes are not those that were recorded.

    Raises:
        ChangedBytesError: with both hashes.
    """
    try:
        got = fingerprint_file(path)
    except FileNotFoundError:
        error = MissingShardError if path.suffix == ".safetensors" else MissingError
        raise error(f"{path} is missing", fix="run `headwater index` again") from None
    if got != expected:
        fix = "remove the file and run `headwater index` again: only what is missing is computed anew"
        raise ChangedBytesError(f"{path} is not the file that was written", got=got, expected=expected, fix=fix)


def require_each_once(what: str, ranges: list[tuple[int, int]], passages: int) -> None:
    """Refuses ranges that do not cover each of the passages exactly once.

    Raises:
        CoverageError: with the first passage that is missing or present twice.
    """
    at = 0
    for start, stop in sorted(ranges):
        if start != at:
            state = "missing" if start > at else "present twice"
            raise CoverageError(f"{what}: passage {min(start, at)} is {state}", fix="make the index again")
        at = stop
    if at != passages:
        raise CoverageError(f"{what}: covers {at} passages", expected=passages, fix="make the index again")
