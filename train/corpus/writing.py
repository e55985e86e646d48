"""The second half of a build: passages shuffled, packed and written as shards, then joined into a corpus directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headwater.train.artifacts import (
    atomic_path,
    fingerprint,
    fingerprint_file,
    read_json,
    remove,
    remove_parts,
    write_json,
)
from headwater.train.corpus.encoding import end_of
from headwater.train.corpus.packing import pack
from headwater.train.corpus.parts import Piece
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.mosaic import SHARD_FILE, PackedSequence, merge_indexes, upload, write_shard
from headwater.train.stream.column_types import as_columns, in_schema, joined_schema
from headwater.train.stream.corpus import FORMAT
from headwater.train.tokenizer import TextTokenizer

Progress = Callable[[str], None]
"""Told in one line what is being done."""


class Passages(Protocol):
    """Passages to be written."""

    def gather(self, numbers: np.ndarray) -> list[Piece]:
        """Passages by number, in that order."""
        ...


def manifest_head(corpus: CorpusSettings, tokenizer: TextTokenizer) -> dict[str, Any]:
    end = end_of(tokenizer, corpus)
    return {
        **({} if end is None else {"eos_id": end}),
        **({} if corpus.begin_token == "every" else {"begin_token": corpus.begin_token}),
        "seq_len": corpus.seq_len,
        "max_tokens": corpus.max_tokens,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "tokenizer": tokenizer.fingerprint,
        "seed": corpus.seed,
    }


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Which passages a shard holds, and what they are called.

    order: int64 [n], numbers in `Passages`, in the shuffled order.
    first_passage: the corpus's number of the shard's first passage.
    """

    name: str
    order: np.ndarray
    first_passage: int


def plan_shards(lengths: np.ndarray, orders: list[np.ndarray], shard_tokens: int) -> tuple[list[ShardPlan], list[int]]:
    """Divides the shuffled passages of each source among shards of about `shard_tokens`.

    Returns:
        The shards, and how many of them each source has.
    """
    plans: list[ShardPlan] = []
    counts = []
    first = 0
    for order in orders:
        had = len(plans)
        # Every passage takes one beginning token besides its own.
        sizes = lengths[order].astype(np.int64) + 1
        shard_of = (np.cumsum(sizes) - sizes) // shard_tokens
        for members in np.split(order, np.flatnonzero(np.diff(shard_of)) + 1):
            if len(members):
                plans.append(ShardPlan(f"{len(plans):05d}", members, first))
                first += len(members)
        counts.append(len(plans) - had)
    return plans, counts


def build_shard(
    directory: Path,
    plan: ShardPlan,
    passages: Passages,
    *,
    bos_id: int,
    seq_len: int,
    apart: bool,
    begin_every: bool = True,
) -> None:
    """Packs and writes one shard, with the table of its passages beside it as `table.parquet`.

    Args:
        directory: of the shard; appears whole or not at all.
        apart: keep passages of one document in different sequences.
        begin_every: put the beginning token before every passage, not before a document's first alone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = passages.gather(plan.order)
    begun = [begin_every or piece.first for piece in held]
    lengths = np.array([len(piece.tokens) + begins for piece, begins in zip(held, begun, strict=True)], dtype=np.int32)
    masked = any(piece.counted is not None for piece in held)
    packed = pack(lengths, seq_len, [piece.document for piece in held] if apart else None)
    places = [place for sequence in packed for place in sequence]

    def sequences() -> Iterator[tuple[PackedSequence, list[str]]]:
        first = plan.first_passage
        for members in packed:
            tokens = laid_out([([bos_id] * begun[place], held[place].tokens) for place in members], np.uint32)
            counted = None
            if masked:
                counted = laid_out([([False] * begun[place], flags_of(held[place])) for place in members], np.bool_)
            yield PackedSequence(tokens, lengths[members], first, counted), [held[place].id for place in members]
            first += len(members)

    write_shard(directory, sequences(), masked=masked)
    write_json(note_path(directory), described(directory / SHARD_FILE))
    offsets = np.concatenate([np.cumsum(lengths[members]) - lengths[members] for members in packed])
    table = pa.table(
        {
            "passage": pa.array(plan.first_passage + np.arange(len(places)), pa.int64()),
            "id": pa.array([held[place].id for place in places], pa.string()),
            "document": pa.array([held[place].document for place in places], pa.string()),
            "sequence": pa.array(np.repeat(np.arange(len(packed)), [len(members) for members in packed]), pa.int64()),
            "offset": pa.array(offsets, pa.int32()),
            "length": pa.array(lengths[places], pa.int32()),
            **as_columns([held[place].columns for place in places]),
        }
    )
    with atomic_path(table_path(directory)) as part:
        pq.write_table(table, part)


def laid_out(pieces: list[tuple[list[Any], np.ndarray]], kind: Any) -> np.ndarray:
    """What stands before each piece, and the piece, one after the other."""
    return np.concatenate([part for piece in pieces for part in piece]).astype(kind)


def flags_of(piece: Piece) -> np.ndarray:
    """Which of a passage's tokens carry loss: bool [n]."""
    return piece.counted if piece.counted is not None else np.ones(len(piece.tokens), dtype=bool)


def table_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.parquet")


def note_path(shard: Path) -> Path:
    """Where a shard's size and hash are kept until it is joined: whoever writes it makes them."""
    return shard.with_name(f"{shard.name}.json")


def described(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "xxh3": fingerprint_file(file)}


def join_corpus(
    work: Path,
    plans: list[ShardPlan],
    counts: list[int],
    describe: dict[str, Any],
    names: list[tuple[str, float]],
    **unmarked: Any,
) -> None:
    """Joins written shards: index.json, passages.parquet and manifest.json.

    Args:
        work: the directory with the shards.
        plans, counts: as planned.
        describe: further entries of the manifest.
        names: name and weight of each source.
        unmarked: entries that the corpus's fingerprint does not cover.
    """
    remove(work / "index.json")
    merge_indexes(work, [plan.name for plan in plans])
    sequences = join_tables(work, [plan.name for plan in plans])
    shards = []
    for plan, held in zip(plans, sequences, strict=True):
        note = note_path(work / plan.name)  # not there where an earlier version wrote the shard
        there = read_json(note) if note.exists() else described(work / plan.name / SHARD_FILE)
        entry = {"file": f"{plan.name}/{SHARD_FILE}", **there}
        shards.append({**entry, "sequences": held})
    table = work / "passages.parquet"
    entry = {"file": table.name, **described(table)}
    sources, shard, sequence = [], 0, 0
    for (name, weight), count in zip(names, counts, strict=True):
        held = sum(sequences[shard : shard + count])
        sources.append({"name": name, "weight": weight, "first_sequence": sequence, "sequences": held})
        shard, sequence = shard + count, sequence + held
    content = {**describe, "sequences": sequence, "sources": sources, "shards": shards, "table": entry}
    write_json(work / "manifest.json", {"format": FORMAT, "fingerprint": fingerprint(content), **content, **unmarked})


def publish_corpus(work: Path, out: Path, plans: list[ShardPlan], remote: str = "") -> None:
    """Makes a joined directory the corpus: uploaded if there is a remote, then renamed.

    With a remote, `out` keeps the manifest and the tables; shards come back into the cache when they are read.
    """
    remove_parts(work)
    if remote:
        shards = [f"{plan.name}/{name}" for plan in plans for name in (SHARD_FILE, "index.json")]
        # The manifest comes last: whoever finds it finds everything.
        tables = [
            name
            for name in ("tokenizer.json", "index.json", "passages.parquet", "manifest.json")
            if (work / name).exists()
        ]
        upload(work, [*shards, *tables], remote)
    for plan in plans:
        remove(table_path(work / plan.name))
        remove(note_path(work / plan.name))
        if remote:
            remove(work / plan.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    work.rename(out)


def join_tables(work: Path, shards: list[str]) -> list[int]:
    """Writes passages.parquet from the shards' tables, one in memory at a time; returns the sequences of each shard."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    writer = None
    held: list[int] = []
    schema = joined_schema(pq.read_schema(table_path(work / shard)) for shard in shards)
    with atomic_path(work / "passages.parquet") as part:
        for shard in shards:
            table = in_schema(pq.read_table(table_path(work / shard)), schema)
            sequences = table["sequence"]
            count = int(pc.max(sequences).as_py()) + 1
            shifted = pc.add(sequences, pa.scalar(sum(held), pa.int64()))
            table = table.set_column(table.schema.get_field_index("sequence"), "sequence", shifted)
            writer = writer or pq.ParquetWriter(part, schema, compression="zstd")
            writer.write_table(table, row_group_size=65_536)
            held.append(count)
        if writer is not None:
            writer.close()
    return held
