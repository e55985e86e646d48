"""Memory and time of an index against its number of passages: written, finished, opened, verified, scanned, traced.

    headwater bench scale --passages 1000000 10000000 --json scale.json

Passages are synthetic, everything that is done with them is not: a table of passages as a corpus has it, rows of 64
numbers as signs (18 bytes a passage), written by the index's own writer. Each step runs in a process of its own, in one
thread, so that its peak memory is its own; what it imports is not counted as its time. A trace is a scan and the
results with the passages' ids; there is no model, so rows of queries are given and a passage's text is made from its
id.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from headwater.attribution.index.writer import IndexWriter
    from headwater.attribution.rows.layout import RowLayout
    from headwater.train.stream.passages import PassageSet

SIDE = 8
"""A row is one module of SIDE x SIDE numbers."""
QUERIES, TOP, LOOKED_UP = 16, 20, 1000
SAMPLE = 4096
"""Passages of the curvature."""
GROUP = 1 << 16
"""Passages of a row group in the corpus's table, as corpora have them."""


def main(passages: Sequence[int] = (1_000_000, 10_000_000), folder: str | None = None) -> list[dict[str, Any]]:
    """Seconds and peak memory of each step of an index's life, by its number of passages; prints a line a step.

    passages: sizes. --folder: where corpora and indexes are made (and removed again): some 60 bytes a passage.
    """
    report = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count in passages:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            for step in STEPS:
                command = [sys.executable, "-m", "headwater.launch.bench.scale", step, made, str(count)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                line = {"passages": count, "step": step, **json.loads(done.stdout.splitlines()[-1])}
                report.append(line)
                mib = line["peak_rss_bytes"] / 2**20
                print(f"{count:11,d} passages  {step:8s} {line['seconds']:9.2f} s  peak {mib:6.0f} MiB", flush=True)
    return report


def layout() -> RowLayout:
    from headwater.attribution.rows.layout import RowLayout

    return RowLayout([("module.0", SIDE, SIDE)])


def rows(start: int, stop: int) -> torch.Tensor:
    """Raw rows of the passages [start, stop), float32 [n, D]; the same for the same `start`."""
    import torch

    return torch.randn(stop - start, SIDE * SIDE, generator=torch.Generator().manual_seed(start))


def id_groups(passages: int) -> Iterator[Any]:
    """Ids as a corpus has them, `document#k` in shuffled order: pyarrow arrays of `GROUP`."""
    import math

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    # Multiplication with what has no factor in common with their number visits all.
    factor = next(n for n in range(int(passages * 0.618), 2 * passages + 2) if math.gcd(n, passages) == 1)
    for start in range(0, passages, GROUP):
        places = np.arange(start, min(start + GROUP, passages)) * factor % passages
        documents, pieces = (pc.cast(pa.array(part), pa.string()) for part in np.divmod(places, 3))
        named = pc.binary_join_element_wise(pa.scalar("web/"), documents, "")
        yield pc.binary_join_element_wise(named, pieces, "#")


def write_corpus(folder: Path, passages: int) -> None:
    """A corpus directory without shards: manifest.json and passages.parquet."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from headwater.train.artifacts import fingerprint, fingerprint_file, make_directories, write_json
    from headwater.train.stream.corpus import FORMAT

    corpus = folder / "corpus"
    make_directories(corpus)
    writer, at, file = None, 0, corpus / "passages.parquet"
    for ids in id_groups(passages):
        numbers = np.arange(at, at + len(ids))
        table = pa.table(
            {
                "passage": pa.array(numbers),
                "id": ids,
                "sequence": pa.array(numbers // 8),
                "offset": pa.array((numbers % 8 * 64).astype(np.int32)),
                "length": pa.array(np.full(len(ids), 64, np.int32)),
            }
        )
        writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=GROUP)
        at += len(ids)
    assert writer is not None
    writer.close()
    content = {
        "passages": passages,
        "sequences": 0,
        "tokenizer": "none",
        "shards": [],
        "table": {"file": file.name, "bytes": file.stat().st_size, "xxh3": fingerprint_file(file)},
    }
    write_json(corpus / "manifest.json", {"format": FORMAT, "fingerprint": fingerprint(content), **content})


def open_passages(folder: Path) -> PassageSet:
    """The corpus's passages, with texts that are made from their ids."""
    from headwater.train.stream.corpus import open_corpus
    from headwater.train.stream.passages import PassageSet

    class Named(PassageSet):
        def text(self, passage: int) -> str:
            return f"What {self.id_of(passage)} says."

    return Named([open_corpus(folder / "corpus")])


def open_writer(folder: Path, passages: int) -> IndexWriter:
    """The index's writer; its curvature is made, or read if the index was begun."""
    from headwater.attribution.curvature.files import load_whitening
    from headwater.attribution.curvature.sums import FactorSums
    from headwater.attribution.index.writer import IndexWriter

    path = folder / "index"
    if (path / "index.json").exists():
        whitening = load_whitening(path / "curvature.safetensors", layout())
    else:
        sums = FactorSums(layout())
        sums.add(rows(passages, passages + SAMPLE))
        whitening = sums.whitening(0.01)
    meta = {"corpus": "synthetic", "model": {"kind": "none", "step": 0}}
    writer = IndexWriter(path, layout=layout(), passages=passages, whitening=whitening, codecs=["sign"], meta=meta)
    writer.begin()
    return writer


def write_rows(folder: Path, passages: int) -> None:
    writer = open_writer(folder, passages)
    for window in writer.pending():
        writer.write(window, rows(*writer.span(window)))


def finish(folder: Path, passages: int) -> None:
    open_writer(folder, passages).finish(open_passages(folder).id_batches())


def open_and_look_up(folder: Path, passages: int) -> None:
    """Ids of passages, passages of ids, and their rows."""
    import numpy as np

    from headwater.attribution.index.reader import open_index

    index = open_index(folder / "index")
    some = np.unique(np.random.default_rng(0).integers(0, passages, LOOKED_UP))
    names = index.ids_of(some)
    assert index.find([*names, "nobody#0"]) == dict(zip(names, some.tolist(), strict=True))
    assert len(index.gather("sign", some)["norm"]) == len(some)


def verify_all(folder: Path, passages: int) -> None:
    from headwater.attribution.index.verify import verify

    assert verify(folder / "index").passages == passages


def scan_all(folder: Path, passages: int) -> None:
    """One stage, with the task's curvature; the rows of some passages, made again, must find these."""
    import numpy as np

    from headwater.attribution.index.reader import open_index
    from headwater.attribution.search.options import ScanOptions, Source
    from headwater.attribution.search.scan import scan

    found = scan([Source(open_index(folder / "index"), rows(0, QUERIES))], ScanOptions(top_k=TOP, bottom_k=TOP))
    assert found.scanned == passages
    # A row of 64 signs agrees with the row that it is of far better than those of others do.
    assert np.mean(found.passages[:, 0] == np.arange(QUERIES)) > 0.5


def trace(folder: Path, passages: int) -> None:
    """A scan, and the results as they are written."""
    from types import SimpleNamespace

    from headwater.attribution.index.reader import open_index
    from headwater.attribution.search.options import ScanOptions, Source
    from headwater.attribution.search.scan import scan
    from headwater.attribution.tracing.queries import Query
    from headwater.attribution.tracing.results import as_results, write_results

    index, held = open_index(folder / "index"), open_passages(folder)
    gold = held.ids(0, QUERIES)
    queries = [Query(name, f"What says {name}?", "that", gold=(name,)) for name in gold]
    found = scan([Source(index, rows(0, QUERIES))], ScanOptions(top_k=TOP, bottom_k=TOP))
    opened: Any = SimpleNamespace(index=index, passages=held, run=None)
    records = as_results(queries, found, opened, "scale")
    write_results(folder / "trace.jsonl", records)
    assert index.find([record["proponent_ids"][0] for record in records]).keys() >= set(gold[:1])


STEPS: dict[str, tuple[Callable[[Path, int], None], Sequence[str]]] = {
    "corpus": (write_corpus, ["train.stream.corpus"]),
    "write": (write_rows, ["attribution.index.writer", "attribution.curvature.sums"]),
    "finish": (finish, ["attribution.index.writer", "train.stream.passages"]),
    "open": (open_and_look_up, ["attribution.index.reader"]),
    "verify": (verify_all, ["attribution.index.verify"]),
    "scan": (scan_all, ["attribution.search.scan"]),
    "trace": (trace, ["attribution.search.scan", "attribution.tracing.results", "attribution.tracing.queries"]),
}
"""What is done, in this order, and what it imports. The first is not the index's own."""


def run_step(step: str, folder: Path, passages: int) -> dict[str, Any]:
    """What a step's process prints."""
    from headwater.train.numerics import keep_freed_memory

    work, modules = STEPS[step]
    for name in ("pyarrow.compute", "pyarrow.parquet", *(f"headwater.{name}" for name in modules)):
        importlib.import_module(name)
    keep_freed_memory()  # as builds and traces do
    began = time.perf_counter()
    work(folder, passages)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    print(json.dumps(run_step(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
