"""How fast the scan reads and compares, against a plain read of the same files and faiss; how much memory it takes.

    headwater bench search --rows 20000 --dims 8192                  rates, interleaved in one run
    headwater bench search --codecs int8 sign factors16 factors8     the same of other stored forms, of equal rows
    headwater bench search --rows 20000,200000 --dims 1024           peak memory of build and scan for each size

Rows are synthetic (heavy tails, decaying spectrum). All files lie in the page cache, so that a plain read is as fast as
memory allows.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

from headwater.configs.errors import UserError

READ_BYTES = 16 << 20
MODULES = 8


def make_layout(dims: int) -> Any:
    """Eight square modules if that comes out even, else one row of numbers."""
    from headwater.attribution.rows.layout import RowLayout

    side = side_of(dims)
    if MODULES * side * side == dims:
        return RowLayout((f"module.{i}", side, side) for i in range(MODULES))
    return RowLayout([("module.0", 1, dims)])


def side_of(dims: int) -> int:
    return isqrt(dims // MODULES)


def require_sides(dims: int, codecs: Sequence[str]) -> None:
    """Products of signs are of matrices: refuses them for rows that come out as one row of numbers."""
    of_sides = [name for name in codecs if name.startswith("factors")]
    side = side_of(dims)
    if of_sides and MODULES * side * side != dims:
        near = [MODULES * each * each for each in (max(side, 1), side + 1)]
        raise UserError(
            f"--dims leaves {', '.join(of_sides)} no sides to take products of",
            got=dims,
            expected=f"{MODULES} times a square, as {near[0]:,} or {near[1]:,}",
        )


def build_index(path: Path, rows: int, dims: int, codecs: Sequence[str]) -> float:
    """Builds an index of synthetic rows shard by shard; returns its wall time in seconds, row making aside."""
    from headwater.attribution.curvature.sums import FactorSums
    from headwater.attribution.index.writer import IndexWriter
    from headwater.launch.bench.synthetic import RowMaker

    layout = make_layout(dims)
    maker, curvature = RowMaker(layout), FactorSums(layout)
    sample = maker.rows(min(rows, 2048), 1)
    began = time.perf_counter()
    curvature.add(sample)
    whitening = curvature.whitening(0.01)
    writer = IndexWriter(
        path, layout=layout, passages=rows, whitening=whitening, codecs=codecs, meta={"corpus": "synthetic"}
    )
    writer.begin()
    spent = time.perf_counter() - began
    for number in writer.pending():
        start, stop = writer.span(number)
        raw_ND = maker.rows(stop - start, 2 + number)
        began = time.perf_counter()
        writer.write(number, raw_ND)
        spent += time.perf_counter() - began
    writer.finish([f"synthetic/{i}#0" for i in range(rows)])
    return spent


def read_files(files: Sequence[Path]) -> int:
    """Reads the files from end to end into one buffer; returns the bytes."""
    buffer, total = bytearray(READ_BYTES), 0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        while got := os.readv(descriptor, [buffer]):
            total += got
        os.close(descriptor)
    return total


def interleaved(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round, after one round to warm up.

    Of a scan only the pass over the rows counts: faiss, too, is given queries that are whitened already.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            began = time.perf_counter()
            result = run()
            spent = time.perf_counter() - began - getattr(result, "prepare_seconds", 0.0)
            if turn:
                seconds[name].append(spent)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of how many times faster `fast` was than `slow`."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def rates(path: Path, queries: int, rounds: int) -> list[dict[str, Any]]:
    """Rows/s and bytes/s of the scan of each codec, for one query and for `queries`, against a plain read and faiss."""
    import numpy as np

    from headwater.attribution.index.reader import open_index
    from headwater.attribution.search.options import ScanOptions, Source
    from headwater.attribution.search.scan import scan
    from headwater.attribution.search.scorer import Scoring
    from headwater.launch.bench.synthetic import RowMaker

    index = open_index(path)
    flat = faiss_flat(index)
    table = []
    for codec in index.codecs:
        files = list(index.files(codec))
        size = sum(file.stat().st_size for file in files)
        for count in (1, queries):
            queries_QD = RowMaker(index.layout).rows(count, 10_000)
            white_QD = np.ascontiguousarray(index.whitening.apply(queries_QD).numpy())
            source = Source(index, queries_QD)
            work: dict[str, Callable[[], Any]] = {"read": partial(read_files, files)}
            for curvature in ("train", "task"):
                options = ScanOptions(scoring=Scoring(curvature=curvature, rank=64), top_k=10, codec=codec)
                work[curvature] = partial(scan, [source], options)
            if flat is not None:
                work["faiss"] = partial(flat.search, white_QD, 10)
            seconds = interleaved(work, rounds)
            for curvature in ("train", "task"):
                best = statistics.median(seconds[curvature])
                line = {
                    "codec": codec,
                    "queries": count,
                    "curvature": curvature,
                    "bytes_per_row": size / index.passages,
                    "rows_per_s": index.passages / best,
                    "bytes_per_s": size / best,
                    "of_plain_read": ratio(seconds, "read", curvature),
                    "of_faiss": None if flat is None else ratio(seconds, "faiss", curvature),
                    "read_bytes_per_s": size / statistics.median(seconds["read"]),
                }
                table.append(line)
                print_line(line)
    return table


def faiss_flat(index: Any) -> Any:
    """faiss's flat inner-product index over the same rows, float32; None where faiss is not installed."""
    try:
        import faiss
    except ModuleNotFoundError:
        return None
    import torch

    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(index.layout.dims)
    for start in range(0, index.passages, 4096):
        rows_ND = index.rows(start, min(start + 4096, index.passages))
        flat.add((rows_ND / rows_ND.norm(dim=1, keepdim=True)).numpy())
    return flat


def print_line(line: dict[str, Any]) -> None:
    """Size, plain read, and the scan with the corpus's curvature alone or the task's as well."""
    text = f"{line['codec']:9s} {line['queries']:4d} queries {line['curvature']:5s} {line['bytes_per_row']:7.0f} B/row"
    text += f"  {line['rows_per_s']:9.0f} rows/s {line['bytes_per_s'] / 1e9:5.2f} GB/s"
    text += f"  plain read {line['read_bytes_per_s'] / 1e9:5.2f} GB/s: x{line['of_plain_read']:.2f}"
    if line["of_faiss"] is not None:
        text += f"  faiss: x{line['of_faiss']:.2f}"
    print(text, flush=True)


def memory_of(rows: int, dims: int, queries: int, codecs: Sequence[str]) -> dict[str, Any]:
    """Builds and scans an index of that size in a process of its own; peak resident bytes and seconds."""
    command = [sys.executable, "-m", "headwater.launch.bench.search", str(rows), str(dims), str(queries), *codecs]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def build_and_scan(rows: int, dims: int, queries: int, codecs: Sequence[str]) -> dict[str, Any]:
    """What `memory_of` runs."""
    from headwater.attribution.index.reader import open_index
    from headwater.attribution.search.options import ScanOptions, Source
    from headwater.attribution.search.scan import scan
    from headwater.launch.bench.synthetic import RowMaker

    with tempfile.TemporaryDirectory() as folder:
        build_s = build_index(Path(folder), rows, dims, codecs)
        build_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        index = open_index(folder)
        source = Source(index, RowMaker(index.layout).rows(queries, 10_000))
        scan_s = sum(scan([source], ScanOptions(top_k=10, codec=codec)).seconds for codec in codecs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rows": rows, "build_peak_bytes": build_peak, "peak_bytes": peak, "build_s": build_s, "scan_s": scan_s}


def main(
    rows: Sequence[int] = (20_000,),
    dims: int = 8192,
    queries: int = 64,
    codecs: Sequence[str] = ("fp32", "bf16", "int8", "int4", "sign"),
    rounds: int = 5,
    folder: str | None = None,
) -> dict[str, Any]:
    """Runs the benchmark and prints a line per measurement.

    Args:
        rows: one size: rates. Several: peak memory and time of build and scan for each.
        dims: numbers per row.
        queries: compared at once, beside a single one.
        codecs: stored forms; those of products of signs (factors16, factors8, factors4) take 8 times a square of dims.
        rounds: interleaved repetitions; medians are reported.
        folder: where the synthetic index is made (and removed again).
    """
    require_sides(dims, codecs)
    report: dict[str, Any] = {"dims": dims, "queries": queries}
    if len(rows) > 1:
        report["memory"] = [memory_of(count, dims, queries, codecs) for count in rows]
        first = report["memory"][0]
        for each in report["memory"]:
            peak = each["peak_bytes"]
            print(
                f"{each['rows']:8d} rows  peak {peak / 2**20:6.0f} MiB (x{peak / first['peak_bytes']:.3f})"
                f"  build {each['build_s']:6.1f} s  scan {each['scan_s']:6.2f} s"
            )
    else:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            report["build_s"] = build_index(Path(made), rows[0], dims, codecs)
            report["rates"] = rates(Path(made), queries, rounds)
    return report


if __name__ == "__main__":
    size, width, count = (int(value) for value in sys.argv[1:4])
    print(json.dumps(build_and_scan(size, width, count, sys.argv[4:])))
