"""A corpus directory, opened: its passages by number, and its sequences.

corpus = open_corpus("runs/demo/corpus/base")
corpus.tokens(17), corpus.ids(17, 18), corpus.sequence(3).lengths
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs.errors import CorruptError, MissingError
from headwater.train.artifacts import fingerprint, read_json
from headwater.train.mosaic import PackedSequence
from headwater.train.places import noted_places
from headwater.train.stream.shards import ShardSet, check_file, check_once, check_size
from headwater.train.tokenizer import TextTokenizer

FORMAT = "headwater-corpus-1"
UNMARKED = ("format", "fingerprint", "origin", "remote", "places", "cache", "cache_bytes", "window")
"""Entries of a manifest that its fingerprint does not cover."""

CACHED_TOKENS = 32_000_000
"""Tokens of decoded sequences that a corpus keeps in memory (4 bytes each)."""


@dataclass(frozen=True, slots=True)
class SourceSpan:
    """The sequences of a corpus that come from one source."""

    name: str
    weight: float
    first_sequence: int
    sequences: int


class Corpus:
    """Passages 0..N-1 of a corpus directory, in shard order. Use `open_corpus`."""

    def __init__(self, path: Path, manifest: dict[str, Any], cache: Path | None = None) -> None:
        self.path, self.manifest = path, manifest
        cache = cache or (Path(manifest["cache"]) if manifest.get("cache") else None)
        # Corpora that share a cache have shards of the same names.
        cache = cache / manifest["fingerprint"] if cache else None
        self.shards = ShardSet(
            path,
            manifest["shards"],
            remote=remote_of(path, manifest),
            cache=cache,
            cache_bytes=manifest.get("cache_bytes", 0),
        )
        self.passages: int = manifest["passages"]
        self.sequences: int = manifest["sequences"]
        self.fingerprint: str = manifest["fingerprint"]
        self._cached: OrderedDict[int, PackedSequence] = OrderedDict()
        self._cached_tokens = 0
        self._id_groups: OrderedDict[int, list[str]] = OrderedDict()

    def __len__(self) -> int:
        return self.passages

    @property
    def sources(self) -> list[SourceSpan]:
        spans = self.manifest["sources"]
        return [SourceSpan(span["name"], span["weight"], span["first_sequence"], span["sequences"]) for span in spans]

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        """Columns `sequence` int64, `offset` int32, `length` int32 of passages.parquet, each [passages]."""
        table = self._table.read(columns=["sequence", "offset", "length"])
        return {name: table[name].to_numpy() for name in table.column_names}

    @cached_property
    def _table(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        entry = self.manifest["table"]
        check_once(self.path / entry["file"], entry)
        try:
            table = pq.ParquetFile(self.path / entry["file"])
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(f"{self.path / entry['file']} is not Parquet", got=error, fix="restore it") from None
        self._group_starts = np.cumsum(
            [0] + [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        )
        return table

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every passage, the beginning token included: int32 [passages]."""
        return self._places["length"]

    def lengths_of(self, passages: np.ndarray) -> np.ndarray:
        """Tokens of some passages, the beginning token included: int32 [n]; only the row groups that hold them are
        read."""
        groups = np.searchsorted(self._group_starts_of(), passages, side="right") - 1
        lengths = np.empty(len(passages), dtype=np.int32)
        for group in np.unique(groups).tolist():
            mine = groups == group
            column = self._table.read_row_group(group, columns=["length"])["length"].to_numpy()
            lengths[mine] = column[passages[mine] - self._group_starts[group]]
        return lengths

    def _group_starts_of(self) -> np.ndarray:
        """The first passage of each row group of passages.parquet, then their number."""
        _ = self._table
        return self._group_starts

    def find(self, ids: Collection[str]) -> dict[str, int]:
        """The numbers of those of the ids that are here; one row group is in memory at a time."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(sorted(ids), pa.string())
        found: dict[str, int] = {}
        for group, start in enumerate(self._group_starts_of()[:-1].tolist()):
            if len(found) == len(wanted):
                break
            column = self._table.read_row_group(group, columns=["id"])["id"].combine_chunks()
            places = np.flatnonzero(pc.is_in(column, value_set=wanted).to_numpy(zero_copy_only=False))
            found |= {column[place].as_py(): start + place for place in places.tolist()}
        return found

    def ids_of(self, passages: np.ndarray) -> list[str]:
        """Ids of some passages, in their order."""
        groups = np.searchsorted(self._group_starts_of(), passages, side="right") - 1
        names = np.empty(len(passages), dtype=object)
        for group in np.unique(groups).tolist():
            mine = groups == group
            column = self._table.read_row_group(group, columns=["id"])["id"].combine_chunks()
            names[mine] = column.take(passages[mine] - self._group_starts[group]).to_pylist()
        return names.tolist()

    @property
    def sequence_of(self) -> np.ndarray:
        """Sequence of every passage: int64 [passages]."""
        return self._places["sequence"]

    @property
    def offsets(self) -> np.ndarray:
        """Place of every passage's first token in its sequence: int32 [passages]."""
        return self._places["offset"]

    def ids(self, start: int, stop: int) -> list[str]:
        """Ids (`document#k`) of passages start..stop-1; only the row groups that hold them are read."""
        if not 0 <= start <= stop <= self.passages:
            raise IndexError(f"passages {start}..{stop} of {self.passages}")
        table, found = self._table, []
        while start < stop:
            group = int(np.searchsorted(self._group_starts, start, side="right")) - 1
            begin, end = int(self._group_starts[group]), int(self._group_starts[group + 1])
            if group not in self._id_groups:
                self._id_groups[group] = table.read_row_group(group, columns=["id"])["id"].to_pylist()
                if len(self._id_groups) > 8:
                    self._id_groups.popitem(last=False)
            found += self._id_groups[group][start - begin : min(stop, end) - begin]
            start = min(stop, end)
        return found

    def id_batches(self) -> Iterator[Any]:
        """The ids of all passages in order, as pyarrow string arrays; one row group is in memory at a time."""
        table = self._table
        for group in range(table.num_row_groups):
            yield table.read_row_group(group, columns=["id"])["id"].combine_chunks()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of every id; held in memory once asked for.

        Raises:
            CorruptError: two passages have one id.
        """
        numbers = {passage_id: number for number, passage_id in enumerate(self.ids(0, self.passages))}
        if len(numbers) != self.passages:
            got = f"{self.passages} ids, {len(numbers)} distinct"
            raise CorruptError(f"passage ids in {self.path} are not unique", got=got, fix="build the corpus again")
        return numbers

    def sequence(self, number: int) -> PackedSequence:
        """A packed sequence; recently used ones stay decoded in memory."""
        cached = self._cached.get(number)
        if cached is not None:
            self._cached.move_to_end(number)
            return cached
        packed, _ = self.shards.read(number)
        self._cached[number] = packed
        self._cached_tokens += len(packed.tokens)
        while self._cached_tokens > CACHED_TOKENS and len(self._cached) > 1:
            _, dropped = self._cached.popitem(last=False)
            self._cached_tokens -= len(dropped.tokens)
        return packed

    def tokens(self, passage: int) -> np.ndarray:
        """Tokens of a passage, the beginning token first where it has one: uint32 [length]."""
        sequence, mine = self._place(passage)
        return sequence.tokens[mine]

    def counted(self, passage: int) -> np.ndarray | None:
        """Which tokens of a passage carry loss: bool [length]; None: all."""
        sequence, mine = self._place(passage)
        return None if sequence.counted is None else sequence.counted[mine]

    def _place(self, passage: int) -> tuple[PackedSequence, slice]:
        """The sequence that a passage stands in, and where."""
        if not 0 <= passage < self.passages:
            raise IndexError(f"passage {passage} of {self.passages}")
        places = self._places
        offset, length = int(places["offset"][passage]), int(places["length"][passage])
        return self.sequence(int(places["sequence"][passage])), slice(offset, offset + length)

    def text(self, passage: int, tokenizer: TextTokenizer) -> str:
        """The text of a passage, without the tokens that begin it and end its document."""
        tokens = self.tokens(passage)
        if tokens[-1] == self.manifest.get("eos_id"):
            tokens = tokens[:-1]
        return tokenizer.decode(tokens).strip()

    def check_sizes(self) -> None:
        """Checks that every file is there and as long as it was written, without reading it.

        Raises:
            CorruptError, MissingError: naming the first bad file.
        """
        check_size(self.path / self.manifest["table"]["file"], self.manifest["table"])
        self.shards.check_sizes()

    def check_table(self) -> None:
        """Compares the bytes of passages.parquet with the manifest, once a machine.

        Raises:
            CorruptError, MissingError: it is another file.
        """
        check_once(self.path / self.manifest["table"]["file"], self.manifest["table"])

    def verify(self) -> None:
        """Checks every file of the corpus against the manifest.

        Raises:
            CorruptError, MissingError: naming the first bad file.
        """
        check_file(self.path / self.manifest["table"]["file"], self.manifest["table"])
        self.shards.verify()


def remote_of(path: Path, manifest: dict[str, Any]) -> str:
    """Where the shards of a corpus are, if not in its directory; a directory may have been moved along with it."""
    places = [str(place) for place in noted_places(manifest.get("places", []), path) if place.is_dir()]
    return places[0] if places else manifest.get("remote", "")


def open_corpus(path: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> Corpus:
    """Opens a corpus directory.

    Args:
        path: a directory made by `headwater corpus`.
        cache: where shards that lie on a remote are put; by default what `corpus.cache` was when the corpus was built,
            or the corpus directory itself.

    Raises:
        MissingError, CorruptError: there is no corpus, or its manifest is not one.
    """
    path = Path(path)
    if not (path / "manifest.json").exists():
        raise MissingError(
            f"{path} is not a corpus: it has no manifest.json", fix="run `headwater corpus CONFIG` first"
        )
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CorruptError(
            f"{path / 'manifest.json'} is not a corpus manifest", got=got, expected=FORMAT, fix="restore the file"
        )
    content = {name: value for name, value in manifest.items() if name not in UNMARKED}
    if fingerprint(content) != manifest.get("fingerprint"):
        raise CorruptError(
            f"{path / 'manifest.json'} is not as it was written",
            got=f"fingerprint {fingerprint(content)}",
            expected=f"fingerprint {manifest.get('fingerprint')}",
            fix="restore the file, or remove the corpus directory and build it again",
        )
    return Corpus(path, manifest, Path(cache) if cache else None)
