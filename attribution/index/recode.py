"""The rows of one index in other codecs, as another index."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from torch import Tensor

from headwater.attribution.curvature.whitening import BLOCK
from headwater.attribution.index.manifest import NORMS, model_places, without_places
from headwater.attribution.index.reader import Index
from headwater.attribution.index.writer import IndexWriter
from headwater.train.places import note_place

_MADE_HERE = {"format", "passages", "shard_rows", "dims", "layout", "rotation", "curvature", "wanted_codecs"}


def recode(index: Index, path: str | os.PathLike[str], codecs: Sequence[str]) -> None:
    """Writes an index of the same rows in other codecs, from the finest that it holds; goes on if it was killed.

    Raises:
        IncompleteIndexError: the index is unfinished.
    """
    if not index.complete:
        raise index.incomplete()
    kept = {key: value for key, value in without_places(index.manifest).items() if key not in _MADE_HERE}
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
    for window in writer.pending():
        writer.write_coded(window, recoded(index, writer, *writer.span(window)))
    writer.finish(index.id_batches())


def recoded(index: Index, writer: IndexWriter, start: int, stop: int) -> Iterator[dict[str, dict[str, Tensor]]]:
    """The passages [start, stop) as the writer's codecs store them, block by block."""
    finest = index.codecs[0]
    for first in range(start, stop, BLOCK):
        fields = index.fields(finest, first, min(first + BLOCK, stop))
        unit_ND = index.codec(finest).decode(fields)
        norms = {name: fields[name] for name in NORMS}
        yield {codec.name: {**codec.encode(unit_ND), **norms} for codec in writer.codecs}
