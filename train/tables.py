"""Parquet tables that a run writes: with checksums of their pages, and read with one error for whatever is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwater.configs.errors import CorruptError, MissingError


def write_table(table: Any, path: Path, compression: str = "zstd") -> None:
    """Writes a table; a flipped byte in a page is noticed when it is read."""
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression=compression, write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | None = None, *, fix: str) -> Any:
    """The whole of a table, or some columns of it.

    Raises:
        MissingError, CorruptError: it is not there, is not as it was written, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise MissingError(f"{path} is missing", fix=fix)
    try:
        # By a handle: pyarrow would take a name with `=` in it for a partition.
        with open(path, "rb") as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(
                columns=list(columns) if columns else None
            )
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptError(f"{path} cannot be read", got=error, expected="a Parquet file", fix=fix) from None
    lacking = [name for name in columns or () if name not in table.column_names]
    if lacking:
        raise CorruptError(f"{path} has no column {', '.join(lacking)}", got=table.column_names, fix=fix)
    return table
