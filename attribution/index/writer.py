"""Writing an index: shards in any order, by any number of ranks, going on after a kill.

Rank 0 calls `begin`, then (after a barrier) every rank works through its share of `pending`, then (after another)
rank 0 calls `finish`. The bytes depend only on the rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from headwater.attribution.curvature.whitening import BLOCK, Whitening
from headwater.attribution.index.codecs.base import Codec
from headwater.attribution.index.codecs.registry import make_codec
from headwater.attribution.index.codecs.rotation import VERSION
from headwater.attribution.index.encoding import directions_and_norms
from headwater.attribution.index.errors import CoverageError, IncompleteIndexError
from headwater.attribution.index.manifest import (
    FORMAT,
    NORMS,
    made_from,
    model_places,
    read_manifest,
    recorded_entries,
    recorded_files,
    without_places,
)
from headwater.attribution.index.reader import Index
from headwater.attribution.index.shards import shard_name, write_shard
from headwater.attribution.rows.checks import require_finite, require_width
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import MismatchError, UserError
from headwater.train.artifacts import (
    atomic_path,
    fingerprint,
    fingerprint_file,
    read_json,
    remove,
    remove_parts,
    require_directory,
    write_json,
)
from headwater.train.places import note_place

SHARD_BYTES = 64 << 20
"""Target size of one shard's rows in float32: what a rank holds in memory."""


WRITTEN = ("index.json", "curvature.safetensors", "ids.parquet")
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
    ours = ("curvature.safetensors", "moments.safetensors", "*.part", ".tmp*", "*.lock", "corpus")
    found = [] if not path.is_dir() else [each for each in path.iterdir() if not any(map(each.match, ours))]
    if found:
        raise UserError(
            f"{path} holds {min(each.name for each in found)}, and no index",
            expected="an empty or new directory, or one in which an index was begun",
            fix="choose another `out`",
        )


def default_shard_rows(dims: int) -> int:
    """Passages per shard, a multiple of the product block, so that a shard's rows take about 64 MiB in float32."""
    return max(SHARD_BYTES // (4 * dims) // BLOCK, 1) * BLOCK


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
        shard_rows: passages per shard; by default about 64 MiB in float32.

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
        self.shard_rows = shard_rows or default_shard_rows(layout.dims)
        self.meta = dict(meta)

    @property
    def shards(self) -> int:
        return -(-self.passages // self.shard_rows)

    def manifest(self) -> dict[str, Any]:
        """index.json of the unfinished index."""
        content = {
            "format": FORMAT,
            "passages": self.passages,
            "shard_rows": self.shard_rows,
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
        for part in self.path.glob(".tmp*"):  # safetensors' own
            remove(part)
        if not curvature.exists() or (theirs is None and not self.whitening.fingerprint):
            self.whitening.save(curvature)
        elif not self.whitening.fingerprint:  # another build of these settings has begun here since this one looked
            self.whitening.fingerprint = fingerprint_file(curvature)
        if theirs is None:
            write_json(target, self.manifest())
            return
        self._require_same(theirs)
        if theirs["complete"]:
            self._reopen(theirs)
        else:
            self._drop_broken_records()

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

    def _reopen(self, manifest: dict[str, Any]) -> None:
        """A finished index with missing or shortened shards becomes an unfinished one without them."""
        by_shard: dict[int, list[dict[str, Any]]] = {}
        for codec, entries in manifest["codecs"].items():
            for entry in entries:
                by_shard.setdefault(entry["start"] // self.shard_rows, []).append({"codec": codec, **entry})
        if all(self._intact(entry) for entries in by_shard.values() for entry in entries):
            self._remove_records()
            return
        for number, entries in by_shard.items():
            if all(self._intact(entry) for entry in entries):
                self._write_record(number, entries)
        write_json(self.path / "index.json", self.manifest())

    def _intact(self, entry: Mapping[str, Any]) -> bool:
        file = self.path / entry["file"]
        return file.exists() and file.stat().st_size == entry["bytes"]

    def _drop_broken_records(self) -> None:
        for record in self.path.glob("rows-*.json"):
            if not all(self._intact(entry) for entry in recorded_entries(record)):
                remove(record)

    def _remove_records(self) -> None:
        for record in self.path.glob("rows-*.json"):
            remove(record)

    def _record(self, number: int) -> Path:
        return self.path / f"rows-{number:05d}.json"

    def _write_record(self, number: int, entries: list[dict[str, Any]]) -> None:
        write_json(self._record(number), {"files": entries})

    @property
    def complete(self) -> bool:
        return bool(read_json(self.path / "index.json")["complete"])

    def pending(self) -> list[int]:
        """The shards still to be made. Ranks that share them ask once: each write makes the list shorter."""
        if self.complete:
            return []
        return [number for number in range(self.shards) if not self._record(number).exists()]

    def span(self, number: int) -> tuple[int, int]:
        """Passages [start, stop) of a shard."""
        start = number * self.shard_rows
        return start, min(start + self.shard_rows, self.passages)

    def shard(self, number: int) -> ShardRows:
        """Collects the rows of one shard."""
        return ShardRows(self, number)

    def write(self, number: int, rows_ND: Tensor) -> None:
        """Whitens, encodes and writes the raw rows of one shard, in order, float32 [shard's passages, D]."""
        shard = self.shard(number)
        start, stop = self.span(number)
        shard.put(torch.arange(start, stop), rows_ND)
        shard.close()

    def _encode(self, number: int, rows_ND: Tensor) -> None:
        """Whitens, encodes and writes raw rows, block by block."""
        start, _ = self.span(number)
        blocks = []
        for raw_ND in rows_ND.split(BLOCK):
            unit_ND, norms = directions_and_norms(self.whitening, raw_ND)
            require_finite(unit_ND, start, "whitened rows")
            blocks.append({codec.name: {**codec.encode(unit_ND), **norms} for codec in self.codecs})
        self._write_shard(number, blocks)

    def recode(self, number: int, index: Index, codec: str) -> None:
        """Writes one shard from the whitened rows that another index holds in that codec."""
        start, stop = self.span(number)
        blocks = []
        for first in range(start, stop, BLOCK):
            fields = index.fields(codec, first, min(first + BLOCK, stop))
            unit_ND = index.codec(codec).decode(fields)
            norms = {name: fields[name] for name in NORMS}
            blocks.append({each.name: {**each.encode(unit_ND), **norms} for each in self.codecs})
        self._write_shard(number, blocks)

    def _write_shard(self, number: int, blocks: list[dict[str, dict[str, Tensor]]]) -> None:
        start, stop = self.span(number)
        entries = []
        for codec in self.codecs:
            parts = [block[codec.name] for block in blocks]
            file = self.path / shard_name(number, codec.name)
            write_shard(file, {field: torch.cat([part[field] for part in parts]) for field in parts[0]})
            entry = {"codec": codec.name, "file": file.name, "start": start, "stop": stop}
            entries.append({**entry, "bytes": file.stat().st_size, "xxh3": fingerprint_file(file)})
        self._write_record(number, entries)

    def finish(self, ids: Sequence[str]) -> None:
        """Writes the passage ids and declares the index complete. One rank only, after the others are done.

        Raises:
            IncompleteIndexError: a shard is missing.
            CoverageError: the ids are not one per passage, or not distinct.
        """
        if self.complete:
            return
        left = [number for number in range(self.shards) if not self._record(number).exists()]
        if left:
            raise IncompleteIndexError(
                f"{self.path} lacks {len(left)} of {self.shards} shards", got=f"missing {left[:5]}"
            )
        if len(ids) != self.passages or len(set(ids)) != self.passages:
            raise CoverageError(
                "the passage ids are not one for each passage",
                got=f"{len(set(ids))} distinct of {len(ids)}",
                expected=self.passages,
            )
        table = pa.table({"passage": pa.array(range(self.passages), pa.int64()), "id": pa.array(ids, pa.string())})
        with atomic_path(self.path / "ids.parquet") as part:
            pq.write_table(table, part, compression="zstd")
        manifest = self.manifest()
        manifest["codecs"] = recorded_files(self.path, manifest)
        manifest["ids"] = {"file": "ids.parquet", "xxh3": fingerprint_file(self.path / "ids.parquet")}
        manifest["complete"] = True
        write_json(self.path / "index.json", manifest)
        self._remove_records()


def recode(index: Index, path: str | os.PathLike[str], codecs: Sequence[str]) -> None:
    """Writes an index of the same rows in other codecs, from the finest that it holds; goes on if it was killed.

    Raises:
        IncompleteIndexError: the index is unfinished.
    """
    if not index.complete:
        raise index.incomplete()
    made_here = {"format", "passages", "shard_rows", "dims", "layout", "rotation", "curvature", "wanted_codecs"}
    kept = {key: value for key, value in without_places(index.manifest).items() if key not in made_here}
    places = {
        name: note_place(next((each for each in found if each.exists()), found[0]), path)
        for name, found in model_places(index.path, index.manifest).items()
    }
    writer = IndexWriter(
        path,
        layout=index.layout,
        passages=index.passages,
        whitening=index.whitening,
        codecs=codecs,
        meta={**kept, "places": places, "recoded_from": index.codecs[0]},
        shard_rows=index.shard_rows,
    )
    writer.begin()
    for number in writer.pending():
        writer.recode(number, index, index.codecs[0])
    writer.finish(index.passage_ids)


class ShardRows:
    """The raw rows of one shard, put in any order; `close` writes it."""

    def __init__(self, writer: IndexWriter, number: int) -> None:
        self._writer, self._number = writer, number
        self._start, self._stop = writer.span(number)
        self._rows_ND = torch.zeros(self._stop - self._start, writer.layout.dims)
        self._seen_N = torch.zeros(self._stop - self._start, dtype=torch.bool)

    def put(self, passages: Sequence[int] | Tensor, rows_ND: Tensor) -> None:
        """Takes raw rows, float [n, D], of these passage numbers.

        Raises:
            MismatchError: another width or number of rows.
            CoverageError: a passage of another shard, or one that already has a row.
            NonFiniteRowsError: NaN or infinity.
        """
        places = torch.as_tensor(passages, dtype=torch.int64) - self._start
        require_width(rows_ND, self._writer.layout)
        if len(places) != len(rows_ND):
            raise MismatchError("passage numbers and rows differ in number", got=len(rows_ND), expected=len(places))
        inside = (places >= 0) & (places < len(self._seen_N))
        if not bool(inside.all()) or bool(self._seen_N[places].any()) or len(places.unique()) != len(places):
            raise CoverageError(
                f"shard {self._number} was given a passage twice, or one that is not its own",
                got=(places + self._start).tolist()[:8],
                expected=f"each of {self._start} to {self._stop - 1} once",
            )
        block_ND = rows_ND.detach().to("cpu", torch.float32)
        finite_N = torch.isfinite(block_ND).all(dim=1)
        if not bool(finite_N.all()):
            require_finite(block_ND[~finite_N][:1], int(places[~finite_N][0]) + self._start)
        self._rows_ND[places] = block_ND
        self._seen_N[places] = True

    def close(self) -> None:
        """Whitens, encodes and writes the shard.

        Raises:
            CoverageError: a passage has no row.
        """
        missing = (torch.nonzero(~self._seen_N).flatten() + self._start).tolist()
        if missing:
            raise CoverageError(
                f"shard {self._number} lacks rows", got=f"none for passages {missing[:8]}", expected="one each"
            )
        self._writer._encode(self._number, self._rows_ND)
