"""What documents bring along beside their text: the fields that a source names in `columns`, kept with each passage.

A value is a text, a number or a flag, or missing.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from headwater.configs.errors import UserError

OWN = ("passage", "id", "document", "sequence", "offset", "length")
"""Columns of passages.parquet that every corpus has."""


def is_column_name(name: str) -> bool:
    """Whether a column of this name can be kept and asked for."""
    return name.isidentifier() and not keyword.iskeyword(name) and name not in OWN


def kept_values(names: Sequence[str], record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Of a record the fields that are kept.

    Raises:
        UserError: one holds something else than a text, a number or a flag.
    """
    return {name: _scalar(record.get(name), name, where) for name in names}


def _scalar(value: Any, name: str, where: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return float(value)
    if isinstance(value, Decimal):
        return float(value)
    if hasattr(value, "isoformat"):  # dates and times sort as such texts do
        return value.isoformat()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise UserError(
        f"{where} has something in {name!r} that cannot be kept",
        got=type(value).__name__,
        expected="a text, a number, a flag, or nothing",
        fix=f"leave {name} out of the source's columns",
    )
