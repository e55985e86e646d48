"""Writing an index: windows of passages in any order, by any number of ranks, going on after a kill.

Rank 0 calls `begin`, then (after a barrier) every rank works through its share of `pending`, then (after another)
rank 0 calls `finish`. The bytes depend only on the rows. A shard is filled window by window (shard_writing.py): memory
grows neither with the shards nor with the corpus.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwater.attribution.curvature.whitening import BLOCK, Whitening
from headwater.attribution.index.codecs.base import Codec
from headwater.attribution.index.codecs.registry import make_codec
from headwater.attribution.index.codecs.rotation import VERSION
from headwater.attribution.index.encoding import directions_and_norms
from headwater.attribution.index.errors import IncompleteIndexError
from headwater.attribution.index.id_tables import write_id_tables
from headwater.attribution.index.manifest import (
    FORMAT,
    NORMS,
    TABLES,
    made_from,
    read_manifest,
    without_places,
)
from headwater.attribution.index.records import (
    SHARDS,
    ShardRecord,
    read_record,
    read_shard_table,
    record_path,
    records_in,
    write_record,
    write_shard_table,
)
from headwater.attribution.index.shard_writing import NOTES, Fields, GrowingShard
from headwater.attribution.index.windows import Windows
from headwater.attribution.rows.checks import require_finite, require_width
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import MismatchError, UserError
from headwater.train.artifacts import (
    fingerprint,
    fingerprint_file,
    read_json,
    remove,
    remove_parts,
    require_directory,
    write_json,
)

CODED_BYTES = 4 << 20
"""Rows that are coded at once, in float32; never fewer than a block of products."""

WRITTEN = ("index.json", "curvature.safetensors", *TABLES)
"""What an index is made of besides its rows."""


def require_index_directory(path: Path) -> None:
    """Refuses a directory that holds anything and in which no index, nor the corpus of one, has been begun.

    Raises:
        UserError: naming something that is there; it is left as it is.
    """
    begun = read_json(path / "index.json") if (path / "index.json").exists() else None
    if (isinstance(begun, dict) and "format" in begun) or (path / "corpus" / "origin.json").exists():
        return
    require_directory(path)
    ours = (
        "curvature.safetensors",
        "moments.safetensors",
        "precision.json",
        "*.part",
        ".tmp*",
        "*.lock",
        "*.lock.held",
        "corpus",
    )
    found = [] if not path.is_dir() else [each for each in path.iterdir() if not any(map(each.match, ours))]
    if found:
        raise UserError(
            f"{path} holds {min(each.name for each in found)}, and no index",
            expected="an empty or new directory, or one in which an index was begun",
            fix="choose another `out`",
        )


class IndexWriter:
    """Writes one index directory.

    Args:
        path: the directory; made by `begin`.
        layout: of the rows.
        passages: number of passages of the corpus: every one gets a row.
        whitening: the corpus's curvature (or `Whitening.none`). `begin` writes it to curvature.safetensors if it has
            not been saved; a restarted build must load it from there.
        codecs: names of the forms to store.
        meta: what the rows were made from, put into index.json: loss, correction, projection, corpus, model, step, ...
        shard_rows: passages per shard; by default as many as `fitting_shard_rows` says.

    Raises:
        UserError: no passages, no codecs, or an unknown one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layout: RowLayout,
        passages: int,
        whitening: Whitening,
        codecs: Sequence[str],
        meta: Mapping[str, Any],
        shard_rows: int | None = None,
    ) -> None:
        if passages < 1 or not codecs:
            raise UserError("an index needs passages and at least one codec", got=(passages, list(codecs)))
        self.path = Path(path)
        self.layout, self.passages, self.whitening = layout, passages, whitening
        self.codecs: list[Codec] = [make_codec(name, layout) for name in dict.fromkeys(codecs)]
        norms = {name: (dtype, None) for name, dtype in NORMS.items()}
        self._stored: dict[str, Fields] = {codec.name: {**codec.fields, **norms} for codec in self.codecs}
        self.windows = Windows.of(passages, layout, list(self._stored), shard_rows)
        self.meta = dict(meta)

    def span(self, window: int) -> tuple[int, int]:
        """Passages [start, stop) of a window."""
        return self.windows.span(window)

    def _shard(self, number: int) -> GrowingShard:
        return GrowingShard(self.path, number, self.windows.shard_span(number), self.windows.rows, self._stored)

    def manifest(self) -> dict[str, Any]:
        """index.json of the unfinished index."""
        content = {
            "format": FORMAT,
            "passages": self.passages,
            "shard_rows": self.windows.shard_rows,
            "dims": self.layout.dims,
            "layout": self.layout.to_json(),
            "rotation": VERSION,
            "curvature": self.whitening.to_json(),
            "wanted_codecs": [codec.name for codec in self.codecs],
            **self.meta,
        }
        return {"fingerprint": fingerprint(made_from(content)), "complete": False, **content, "codecs": {}}

    def begin(self) -> None:
        """Makes the directory, or takes up an unfinished index in it. One rank only, before the others start.

        Raises:
            MismatchError: the directory holds an index made from something else.
        """
        require_index_directory(self.path)
        target, curvature = self.path / "index.json", self.path / "curvature.safetensors"
        theirs = read_manifest(self.path) if target.exists() else None
        if theirs is not None:
            self._require_same(theirs)
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (*WRITTEN, "rows-*"):
            remove_parts(self.path, f"{name}.*")
        for pattern in (".tmp*", f"rows-*{NOTES}.lock*"):  # safetensors' own; of a killed process
            for left in self.path.glob(pattern):
                remove(left)
        if not curvature.exists() or (theirs is None and not self.whitening.fingerprint):
            self.whitening.save(curvature)
        elif not self.whitening.fingerprint:  # another build of these settings has begun here since this one looked
            self.whitening.fingerprint = fingerprint_file(curvature)
        if theirs is None:
            write_json(target, self.manifest())
            return
        self._require_same(theirs)
        if theirs["complete"]:
            self._reopen()
        else:
            self._take_up()

    def _require_same(self, theirs: dict[str, Any]) -> None:
        """Refuses an index of something else. A curvature that has not been saved yet has no hash to be compared."""
        mine, found = without_places(self.manifest()), without_places(theirs)
        if not self.whitening.fingerprint:
            mine["curvature"] |= {"fingerprint": found.get("curvature", {}).get("fingerprint", "")}
        changed = {key for key in mine.keys() | found.keys() if mine.get(key) != found.get(key)}
        if changed:
            raise MismatchError(
                f"{self.path} holds an index made from something else",
                got=f"another {', '.join(sorted(changed))}",
                expected="the same settings, model and corpus",
                fix="choose another directory, or remove that one",
            )

    def _reopen(self) -> None:
        """A finished index that lacks tables or shards, or whose shards are cut off, becomes an unfinished one."""
        by_shard: dict[int, list[ShardRecord]] = {}
        lacking = [name for name in TABLES if not (self.path / name).exists()]
        for record in read_shard_table(self.path) if SHARDS not in lacking else ():
            by_shard.setdefault(record.start // self.windows.shard_rows, []).append(record)
        intact = {
            number: records
            for number, records in by_shard.items()
            if all(record.is_intact(self.path) for record in records)
        }
        if len(intact) == self.windows.shards and not lacking:
            self._remove_records()
            return
        for number, records in intact.items():
            write_record(self.path, number, records)
        write_json(self.path / "index.json", self.manifest())

    def _take_up(self) -> None:
        """What a killed build has left, and what of it is broken."""
        for path in records_in(self.path):
            whole = all(record.is_intact(self.path) for record in read_record(path))
            remove(path.with_suffix(NOTES) if whole else path)
        for number in self._unfinished():
            self._shard(number).take_up()

    def _remove_records(self) -> None:
        for path in records_in(self.path):
            remove(path)

    @property
    def complete(self) -> bool:
        return bool(read_json(self.path / "index.json")["complete"])

    def pending(self) -> list[int]:
        """The windows still to be made. Ranks that share them ask once: each write makes the list shorter."""
        if self.complete:
            return []
        found: list[int] = []
        for number in self._unfinished():
            shard, first = self._shard(number), number * self.windows.in_shard
            done = shard.done()
            found += [first + place for place in range(shard.windows) if place not in done]
        return found

    def _unfinished(self) -> list[int]:
        return [number for number in range(self.windows.shards) if not record_path(self.path, number).exists()]

    def write(self, window: int, rows_ND: Tensor) -> None:
        """Whitens, encodes and writes the raw rows of one window, in order, float [window's passages, D].

        Raises:
            MismatchError: another width or number of rows.
            NonFiniteRowsError: NaN or infinity.
        """
        start, stop = self.span(window)
        require_width(rows_ND, self.layout)
        if len(rows_ND) != stop - start:
            raise MismatchError("passages and rows differ in number", got=len(rows_ND), expected=stop - start)
        rows_ND = rows_ND.detach().to("cpu", torch.float32)
        require_finite(rows_ND, start)
        self.write_coded(window, self._coded(start, rows_ND))

    def _coded(self, start: int, rows_ND: Tensor) -> Iterator[dict[str, dict[str, Tensor]]]:
        for raw_ND in rows_ND.split(max(CODED_BYTES // (4 * self.layout.dims) // BLOCK, 1) * BLOCK):
            unit_ND, norms = directions_and_norms(self.whitening, raw_ND)
            require_finite(unit_ND, start, "whitened rows")
            yield {codec.name: {**codec.encode(unit_ND), **norms} for codec in self.codecs}

    def write_coded(self, window: int, blocks: Iterable[Mapping[str, Mapping[str, Tensor]]]) -> None:
        """Writes one window: for each codec what it stores of the rows, norms included, block by block in order."""
        number, place = divmod(window, self.windows.in_shard)
        self._shard(number).write(place, blocks)

    def finish(self, ids: Iterable[Any]) -> None:
        """Writes the passage ids and declares the index complete. One rank only, after the others are done.

        Args:
            ids: of all passages in order: batches (pyarrow string arrays, or lists of strings), or one list of strings.

        Raises:
            IncompleteIndexError: a shard is missing.
            CoverageError: the ids are not one per passage, or not distinct.
        """
        if self.complete:
            return
        left = self._unfinished()
        if left:
            raise IncompleteIndexError(
                f"{self.path} lacks {len(left)} of {self.windows.shards} shards", got=f"missing {left[:5]}"
            )
        whole = isinstance(ids, Sequence) and all(isinstance(each, str) for each in ids)
        write_id_tables(self.path, [ids] if whole else ids, self.passages)
        manifest = self.manifest()
        manifest["codecs"] = write_shard_table(self.path, self._stored)
        manifest["tables"] = {name: fingerprint_file(self.path / name) for name in TABLES}
        manifest["complete"] = True
        write_json(self.path / "index.json", manifest)
        self._remove_records()
