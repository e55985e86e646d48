"""The index directory: written shard by shard, opened through a memory map.

    index.json  curvature.safetensors  rows-00000.int8.safetensors  rows-00001.int8.safetensors ...
    shards.parquet  ids.parquet  lookup.parquet

Shard i holds the passages [i * shard_rows, (i + 1) * shard_rows). While an index is being built, a record
`rows-00000.json` stands beside each shard that is done (records.py); when the build finishes, the records become one
table. So a killed build goes on with the shards that have no record, on any number of ranks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.curvature.files import load_whitening
from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.index.codecs.base import Codec
from headwater.attribution.index.codecs.registry import make_codec
from headwater.attribution.index.errors import IncompleteIndexError, MissingShardError, TruncatedShardError
from headwater.attribution.index.ids import PassageIds
from headwater.attribution.index.manifest import NORMS, read_manifest
from headwater.attribution.index.records import recorded_starts
from headwater.attribution.index.shards import ShardFile, shard_name
from headwater.attribution.index.store import RemoteShards
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import CorruptError, MismatchError, UserError
from headwater.train.artifacts import require_match
from headwater.train.settings import CODEC_NAMES

TOGETHER = 256
"""Single rows that are looked up before their pages are let go of."""


class Index:
    """An opened index. Reading is by ranges of passages; shards are mapped one at a time.

    Attributes:
        path: the directory.
        manifest: what index.json says.
        complete: whether every passage is there. Where it is not, `rows` of a missing shard raises.
        passages: number of passages of the corpus.
        layout: the row layout.
        shard_rows: passages per shard.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        self.layout = RowLayout.from_json(self.manifest["layout"])
        self.complete: bool = self.manifest["complete"]
        self.passages: int = self.manifest["passages"]
        self.shard_rows: int = self.manifest["shard_rows"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self._parts = {} if self.complete else recorded_starts(self.path, self.manifest["wanted_codecs"])
        self._codecs: dict[str, Codec] = {}
        self._open: dict[str, tuple[int, ShardFile]] = {}
        self._whitening: Whitening | None = None
        self._ids: PassageIds | None = None
        self._norms: dict[str, np.ndarray] = {}
        self._remote = RemoteShards.of(self.path)

    @property
    def codecs(self) -> list[str]:
        """Names of the stored codecs, the finest first."""
        return sorted(self.manifest["codecs"] if self.complete else self._parts, key=CODEC_NAMES.index)

    @property
    def whitening(self) -> Whitening:
        """The curvature that the rows are whitened with.

        Raises:
            MismatchError: the file is not the one that the index was made with.
        """
        if self._whitening is None:
            whitening = load_whitening(self.path / "curvature.safetensors", self.layout)
            expected = self.manifest["curvature"]["fingerprint"]
            require_match(
                f"{self.path}/curvature.safetensors is another curvature",
                whitening.fingerprint,
                expected,
                "make the index again",
            )
            self._whitening = whitening
        return self._whitening

    @property
    def passage_ids(self) -> list[str]:
        """The id of each passage, in order; for small corpora: `ids_of`, `id_batches` and `find` hold no such list.

        Raises:
            IncompleteIndexError: the build has not come to writing them.
        """
        return [name for batch in self.id_batches() for name in batch.to_pylist()]

    def ids_of(self, passages: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of some passages, in the order in which these are given; errors as of `passage_ids`."""
        return self._opened_ids().of(passages)

    def id_batches(self) -> Iterator[Any]:
        """The ids of all passages in order, as pyarrow string arrays; errors as of `passage_ids`."""
        return self._opened_ids().batches()

    def find(self, ids: Collection[str]) -> dict[str, int]:
        """The passages of those of the ids that are here, by id; errors as of `passage_ids`."""
        return self._opened_ids().find(ids)

    def _opened_ids(self) -> PassageIds:
        if self._ids is None:
            if not self.complete:
                raise self.incomplete()
            self._ids = PassageIds(self.path, self.passages)
        return self._ids

    @property
    def norms(self) -> np.ndarray:
        """Norms of the whitened rows, float32 [passages]; NaN where a shard is missing."""
        return self._scalars("norm")

    @property
    def raw_norms(self) -> np.ndarray:
        """Norms of the rows before whitening, float32 [passages]; NaN where a shard is missing."""
        return self._scalars("raw_norm")

    def _scalars(self, name: str) -> np.ndarray:
        if name not in self._norms:
            values = np.full(self.passages, np.nan, dtype=np.float32)
            codec = self.codecs[-1]
            for start, stop in self.shards(codec):
                with self._open_shard(codec, start // self.shard_rows) as shard:
                    values[start:stop] = shard.tensor(name).numpy()
            self._norms[name] = values
        return self._norms[name]

    def codec(self, name: str) -> Codec:
        """The codec of that name.

        Raises:
            UserError: the index does not hold it.
        """
        if name not in self.codecs:
            raise UserError(
                f"{self.path} holds no codec {name}",
                got=name,
                expected=", ".join(self.codecs),
                fix="choose one of these",
            )
        if name not in self._codecs:
            self._codecs[name] = make_codec(name, self.layout, self.manifest.get("rotation", 1))
        return self._codecs[name]

    def shards(self, codec: str) -> list[tuple[int, int]]:
        """The ranges [start, stop) of passages of the shards that are there."""
        if self.complete:
            starts = range(0, self.passages, self.shard_rows)
            return [(start, min(start + self.shard_rows, self.passages)) for start in starts]
        return sorted(self._parts[codec])

    def files(self, codec: str) -> Iterator[Path]:
        """The shard files of a codec that are there, in order; each fetched, if it lies in an object store."""
        for start, _ in self.shards(codec):
            yield self.file(shard_name(start // self.shard_rows, codec))

    def fields(self, codec: str, start: int, stop: int) -> dict[str, Tensor]:
        """Stored tensors of the passages [start, stop), norms included. Views into the map if they lie in one shard."""
        parts = [self._held_shard(codec, number).fields(low, high) for number, low, high in self.pieces(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def gather(self, codec: str, passages: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Stored tensors of single passages, in ascending order."""
        wanted = np.asarray(passages, dtype=np.int64)
        parts = []
        for number in np.unique(wanted // self.shard_rows).tolist():
            inside = torch.from_numpy(wanted[wanted // self.shard_rows == number] - number * self.shard_rows)
            shard = self._held_shard(codec, number)
            for some in inside.split(TOGETHER):
                parts.append({name: value[some] for name, value in shard.fields().items()})
                shard.let_go(0, shard.rows)  # the kernel maps 64 KB around each row that is touched
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def rows(self, start: int, stop: int, codec: str | None = None) -> Tensor:
        """Whitened rows of the passages [start, stop), decoded, float32 [n, D].

        Args:
            start, stop: passage numbers, 0 <= start <= stop <= passages.
            codec: which stored form; the finest by default.

        Raises:
            MissingShardError: the index is incomplete and lacks some of them.
            UserError: a passage number beyond the corpus, or a codec that the index does not hold.
        """
        if not 0 <= start <= stop <= self.passages:
            raise UserError(
                "passages beyond the index", got=(start, stop), expected=f"0 <= start <= stop <= {self.passages}"
            )
        name = codec or self.codecs[0]
        if start == stop:
            return torch.empty(0, self.layout.dims)
        fields = self.fields(name, start, stop)
        return self.codec(name).decode(fields) * fields["norm"][:, None]

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The shards that hold passages [start, stop), start < stop: number, and which of its rows these are."""
        for number in range(start // self.shard_rows, (stop - 1) // self.shard_rows + 1):
            first = number * self.shard_rows
            yield number, max(start, first) - first, min(stop, first + self.shard_rows) - first

    def _held_shard(self, codec: str, number: int) -> ShardFile:
        held = self._open.get(codec)
        if held is None or held[0] != number:
            held = (number, self._open_shard(codec, number))
            self._open[codec] = held
        return held[1]

    def shard(self, codec: str, number: int) -> ShardFile:
        """A shard, opened anew and checked for its shape; for who reads its bytes, and then the next one's."""
        opened = self._open_shard(codec, number)
        if self._remote is not None and (number + 1) * self.shard_rows < self.passages:
            self._remote.ahead(shard_name(number + 1, codec))
        return opened

    def file(self, name: str) -> Path:
        """Where a shard's file lies; fetched, if it lies in an object store."""
        return self.path / name if self._remote is None else self._remote.file(name)

    def _open_shard(self, codec: str, number: int) -> ShardFile:
        held = {name: (width,) for name, (_, width) in self.codec(codec).fields.items()} | dict.fromkeys(NORMS, ())
        start = number * self.shard_rows
        name = shard_name(number, codec)
        if not self.complete and not any(first == start for first, _ in self._parts[codec]):
            raise MissingShardError(
                f"shard {self.path / name} has not been built", fix="run `headwater index` again to finish it"
            )
        shard = ShardFile(self.path / name) if self._remote is None else self._remote.opened(name)
        rows = min(self.shard_rows, self.passages - start)
        if shard.rows != rows:
            raise TruncatedShardError(
                f"shard {self.path / name} has the wrong number of rows", got=shard.rows, expected=rows
            )
        if shard.shapes != held:
            raise CorruptError(
                f"shard {self.path / name} holds something else than {codec} rows",
                got=shard.shapes,
                expected=held,
                fix="make the index again",
            )
        return shard

    def close(self) -> None:
        """Drops the mapped shards, and closes the ids; what is asked for next opens them again."""
        self._open.clear()
        if self._ids is not None:
            self._ids.close()
            self._ids = None

    def incomplete(self) -> IncompleteIndexError:
        """The error that says how much of the index is there."""
        done = sum(stop - start for start, stop in self.shards(self.codecs[0])) if self.codecs else 0
        return IncompleteIndexError(
            f"the index {self.path} is incomplete",
            got=f"{done} of {self.passages} passages",
            expected="every passage of the corpus",
            fix="run `headwater index` again to finish it",
        )


def open_index(path: str | os.PathLike[str]) -> Index:
    """Opens an index directory; an incomplete one is opened with a warning, and `.complete` is False.

    Raises:
        MissingError: there is no index.
        CorruptError: index.json cannot be read.
        MismatchError: it is of another format.
    """
    index = Index(path)
    if not index.complete:
        warnings.warn(str(index.incomplete()), stacklevel=2)
    return index


def require_same_passages(indexes: Sequence[Index]) -> None:
    """Refuses indexes of different corpora.

    Raises:
        MismatchError: passages or corpus fingerprints differ.
    """
    first = indexes[0]
    for other in indexes[1:]:
        mine, theirs = (first.passages, first.manifest.get("corpus")), (other.passages, other.manifest.get("corpus"))
        if mine != theirs:
            raise MismatchError(
                f"{other.path} is an index of another corpus than {first.path}",
                got=theirs,
                expected=mine,
                fix="trace them apart",
            )
