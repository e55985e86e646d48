"""At which steps a passage was seen: each whole file of the ledger once more, in the order of passages.

A file of the ledger is in the order of steps, so that a passage can be anywhere in it: of a large run looking some up
would mean reading all of it. Its companion in `by-passage/` holds every (passage, step) once, sorted, in small row
groups whose least and largest passage Parquet notes: what is read goes with the passages that are asked for. A file
without one (of steps that a run has not finished, or made before there were any) is read as it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.configs.errors import CorruptError
from headwater.train.artifacts import atomic_path, remove
from headwater.train.callbacks.ledger_files import read_file

FOLDER = "by-passage"
GROUP_ROWS = 8192
"""Rows of a row group: what is read for one passage, some 20 KB."""
SCHEMA = pa.schema([("passage", pa.int64()), ("step", pa.int32())])
VISITS = b"visits"
"""In the schema's notes: rows of the ledger's file that this one was made from."""


def companion(file: Path) -> Path:
    """Where a file of the ledger has its companion."""
    return file.parent / FOLDER / file.name


def forget_companion(file: Path) -> None:
    """Removes what no longer says what the ledger's file says."""
    if companion(file).exists():
        remove(companion(file))


def write_companion(file: Path) -> None:
    """Sorts a file of the ledger by passage."""
    table = read_file(file)
    pairs_N2 = distinct(np.asarray(table["passage"]), np.asarray(table["step"]))
    columns = [pa.array(column).cast(field.type) for column, field in zip(pairs_N2.T, SCHEMA, strict=True)]
    made = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata({VISITS: str(len(table)).encode()}))
    path = companion(file)
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as part:
        pq.write_table(made, part, compression="zstd", write_page_checksum=True, row_group_size=GROUP_ROWS)


def seen_steps(ledger: Path, passages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The visits of some passages.

    Args:
        ledger: the directory.
        passages: int64 [n].

    Returns:
        passage and step, int64 [visits] each, in the order of passages and then of steps, each pair once.

    Raises:
        CorruptError: a file is not as it was written.
    """
    wanted = np.unique(np.asarray(passages, dtype=np.int64))
    found = [np.empty((0, 2), dtype=np.int64)]
    for file in sorted(ledger.glob("steps-*.parquet")):
        found.append(_looked_up(file, wanted))
    pairs_N2 = np.concatenate(found)
    pairs_N2 = distinct(pairs_N2[:, 0], pairs_N2[:, 1])
    return pairs_N2[:, 0], pairs_N2[:, 1]


def distinct(passages: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Each (passage, step) once, in order: int64 [n, 2]."""
    order = np.lexsort((steps, passages))
    pairs_N2 = np.stack([passages[order], steps[order]], axis=1).astype(np.int64)
    return pairs_N2[np.concatenate([[True], (np.diff(pairs_N2, axis=0) != 0).any(axis=1)])[: len(pairs_N2)]]


def _looked_up(file: Path, wanted: np.ndarray) -> np.ndarray:
    """The visits that a file of the ledger has of some passages (ascending): int64 [n, 2]."""
    path = companion(file)
    try:
        table = _from_companion(path, file, wanted) if path.is_file() else None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        fix = f"remove {path}; the ledger itself is then read"
        raise CorruptError(f"{path} cannot be read", got=error, expected="a Parquet file", fix=fix) from None
    table = read_file(file) if table is None else table
    passages, steps = np.asarray(table["passage"]), np.asarray(table["step"])
    mine = np.isin(passages, wanted)
    return np.stack([passages[mine], steps[mine]], axis=1).astype(np.int64)


def _from_companion(path: Path, file: Path, wanted: np.ndarray) -> pa.Table | None:
    """The row groups that may hold what is wanted; None if the companion is of another file than the ledger's."""
    # By handles: pyarrow would take a name with `=` in it for a partition.
    with open(path, "rb") as handle, open(file, "rb") as whole:
        held = pq.ParquetFile(handle, page_checksum_verification=True)
        notes = held.schema_arrow.metadata or {}
        if int(notes.get(VISITS, -1)) != pq.read_metadata(whole).num_rows:
            return None
        groups = []
        for group in range(held.num_row_groups):
            bounds = held.metadata.row_group(group).column(0).statistics
            low, high = np.searchsorted(wanted, bounds.min), np.searchsorted(wanted, bounds.max, side="right")
            if low < high:
                groups.append(group)
        table = held.read_row_groups(groups, columns=SCHEMA.names)
    table.validate(full=True)
    return table
