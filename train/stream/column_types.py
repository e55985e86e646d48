"""The types of columns that are written apart and joined.

The shards of a corpus are written apart, so that one column may have another type in each; joined, it has one that
holds them all: whole numbers and fractions become fractions, any other mixture text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arrow arrays of the columns of some rows, each of the type that its values have together."""
    import pyarrow as pa

    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else str(value) for value in values]
        columns[name] = pa.array(values)
    return columns


def joined_schema(schemas: Iterable[Any]) -> Any:
    """The schema of tables that are joined: the columns of all, in the order in which they come."""
    import pyarrow as pa

    types: dict[str, Any] = {}
    for schema in schemas:
        for field in schema:
            types[field.name] = _both(types.get(field.name), field.type)
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in types.items()])


def _both(one: Any, other: Any) -> Any:
    """A type for the values of both."""
    import pyarrow as pa

    if one is None or one == other or pa.types.is_null(one):
        return other
    if pa.types.is_null(other):
        return one
    numbers = all(pa.types.is_integer(each) or pa.types.is_floating(each) for each in (one, other))
    return pa.float64() if numbers else pa.string()


def in_schema(table: Any, schema: Any) -> Any:
    """A table with the columns of a schema, empty where it has none of its own."""
    import pyarrow as pa

    present = {name: table[name].cast(schema.field(name).type) for name in table.column_names}
    return pa.table([present.get(field.name, pa.nulls(table.num_rows, field.type)) for field in schema], schema=schema)
