"""What is known of passages beside their text: their ids and lengths, their source, and what their documents brought.

columns = PassageColumns(open_passages(RunDir.at("runs/demo")))
columns.names, columns.read(["source", "year"], 0, 1000)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from headwater.configs.errors import CorruptError
from headwater.train.stream.column_types import joined_schema
from headwater.train.stream.corpus import Corpus
from headwater.train.stream.passages import PassageSet

HIDDEN = ("passage", "sequence", "offset")
"""Columns of passages.parquet that say where a passage lies, not what it is."""
SOURCE = "source"
"""The name of a passage's source; where documents have a column of this name, what they say."""


class PassageColumns:
    """Columns of the passages of several corpora, under their one numbering; one row group of a table in memory."""

    def __init__(self, passages: PassageSet) -> None:
        self.passages = passages
        self._tables = [_Table(corpus) for corpus in passages.corpora]

    @property
    def names(self) -> list[str]:
        """What can be read."""
        found = dict.fromkeys(name for table in self._tables for name in table.schema.names)
        return [SOURCE, *(name for name in found if name not in (SOURCE, *HIDDEN))]

    @cached_property
    def _types(self) -> Any:
        return joined_schema(table.typed for table in self._tables)

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        """Values of passages [start, stop): name -> pyarrow array; null where a passage has none."""
        import pyarrow as pa

        parts: dict[str, list[Any]] = {name: [] for name in names}
        for table, begin in zip(self._tables, self.passages.starts.tolist(), strict=False):
            low, high = max(start, begin), min(stop, begin + table.corpus.passages)
            if low < high:
                for name, found in table.read(names, low - begin, high - begin).items():
                    parts[name] += [each.cast(self._types.field(name).type) for each in found]
        return {name: pa.concat_arrays(each) if each else pa.nulls(0) for name, each in parts.items()}


class _Table:
    """passages.parquet of one corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._held: tuple[int, tuple[str, ...], Any] | None = None

    @cached_property
    def file(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.corpus.check_table()
        path = self.corpus.path / self.corpus.manifest["table"]["file"]
        try:
            return pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(f"{path} is not Parquet", got=error, fix="restore it") from None

    @property
    def schema(self) -> Any:
        return self.file.schema_arrow

    @property
    def typed(self) -> Any:
        """Names and types of what can be read of it."""
        import pyarrow as pa

        own = [field for field in self.schema if field.name not in HIDDEN]
        return pa.schema([*own, *([] if SOURCE in self.schema.names else [(SOURCE, pa.string())])])

    @cached_property
    def _starts(self) -> np.ndarray:
        counts = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        return np.cumsum([0, *counts])

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, list[Any]]:
        """Pieces of the columns, in order; a column that the table has not is empty."""
        found: dict[str, list[Any]] = {name: [] for name in names}
        while start < stop:
            group = int(np.searchsorted(self._starts, start, side="right")) - 1
            begin, end = int(self._starts[group]), min(stop, int(self._starts[group + 1]))
            table = self._group(group, tuple(names))
            for name in names:
                found[name].append(table[name].slice(start - begin, end - start))
            start = end
        return found

    def _group(self, group: int, names: tuple[str, ...]) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._held is None or self._held[:2] != (group, names):
            stored = [name for name in names if name in self.schema.names]
            extra = ["sequence"] if SOURCE in names else []
            table = self.file.read_row_group(group, columns=[*stored, *extra])
            columns = {
                name: table[name].combine_chunks() if name in stored else pa.nulls(table.num_rows) for name in names
            }
            if SOURCE in names:
                own = self._sources(table["sequence"].to_numpy())
                columns[SOURCE] = pc.coalesce(columns[SOURCE].cast(pa.string()), own)
            self._held = group, names, columns
        return self._held[2]

    def _sources(self, sequences_N: np.ndarray) -> Any:
        """The names of the sources that sequences belong to."""
        import pyarrow as pa

        spans = sorted(self.corpus.sources, key=lambda span: span.first_sequence)
        firsts = np.array([span.first_sequence for span in spans])
        places = np.searchsorted(firsts, sequences_N, side="right") - 1
        return pa.array([span.name for span in spans], pa.string()).take(pa.array(places))
