"""What two runs, or two directories, differ in: a line for each difference, none where one is as the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from headwater.train.artifacts import RunDir

CAPTURED = 1e-3
"""Relative distance of captured rows from those of another layout."""

LOCKS = (".lock", ".held")


def run_differences(run: RunDir, expected: RunDir, tolerance: float = 0.0) -> list[str]:
    """A finished run against one that nothing interrupted.

    Each step's metrics stand once and are equal, the ledger's files are equal to the byte, probes, the last
    checkpoint's weights and the captured sums are equal, and nothing half written is left.

    Args:
        tolerance: relative, of losses; 0 where both ran in one layout: then the weights' fingerprints are equal too.
    """
    found = [*_metrics(run, expected, tolerance), *_ledger(run, expected), *_probes(run, expected, tolerance)]
    found += [*_weights(run, expected, tolerance), *_captured(run, expected, tolerance)]
    return found + leftovers(run.path)


def leftovers(directory: Path) -> list[str]:
    """Files that were being written, and locks that nobody holds."""
    ends = (".part", *LOCKS)
    return [f"{path.relative_to(directory)} is left" for path in directory.rglob("*") if path.name.endswith(ends)]


def _metrics(run: RunDir, expected: RunDir, tolerance: float) -> Iterator[str]:
    from headwater.train.callbacks.metrics import read_metrics

    lines, others = read_metrics(run.metrics), read_metrics(expected.metrics)
    steps, wanted = [line["step"] for line in lines], [line["step"] for line in others]
    if steps != wanted:
        yield f"metrics: steps {steps[:3]}... {len(steps)} lines instead of {len(wanted)}"
        return
    for line, other in zip(lines, others, strict=True):
        # On a steep stretch the norm moves a hundred times as much as the loss, and is back a step later.
        for key, within in (("tokens", 0.0), ("lr", 0.0), ("loss", tolerance), ("grad_norm", 100 * tolerance)):
            if abs(line[key] - other[key]) > within * abs(other[key]):
                yield f"metrics: {key} of step {line['step']} is {line[key]} instead of {other[key]}"
                return


def _ledger(run: RunDir, expected: RunDir) -> list[str]:
    return [f"ledger: {each}" for each in file_differences(run.ledger, expected.ledger)]


def _probes(run: RunDir, expected: RunDir, tolerance: float) -> Iterator[str]:
    import numpy as np
    import pyarrow.parquet as pq

    if not expected.probes.exists():
        return
    if not run.probes.exists():
        yield "probes: none"
        return
    probes, others = pq.read_table(run.probes), pq.read_table(expected.probes)
    for column in ("step", "probe"):
        if probes[column].to_pylist() != others[column].to_pylist():
            yield f"probes: {len(probes)} instead of {len(others)}, or in another order"
            return
    ours, theirs = np.asarray(probes["logprob"]), np.asarray(others["logprob"])
    if not np.allclose(ours, theirs, rtol=10 * tolerance, atol=0.0):
        yield f"probes: log-probabilities differ by up to {np.abs(ours - theirs).max():.2e}"


def _weights(run: RunDir, expected: RunDir, tolerance: float) -> Iterator[str]:
    from headwater.train.checkpoint import newest

    one, other = newest(run.checkpoints), newest(expected.checkpoints)
    assert other is not None
    if one is None or one.step != other.step:
        yield f"checkpoints: the newest is of step {one and one.step} instead of {other.step}"
        return
    if not tolerance and one.fingerprint != other.fingerprint:
        yield "weights: another fingerprint"
    for name in one.names:
        a, b = one.tensor("weight", name).double(), other.tensor("weight", name).double()
        if (a - b).norm() > 2 * tolerance * b.norm():
            yield f"weights: {name} differs by {float((a - b).norm() / b.norm()):.1e}"
            return


def _captured(run: RunDir, expected: RunDir, tolerance: float) -> Iterator[str]:
    """The sums that capture keeps in the last checkpoint, and the index that is made of them."""
    from headwater.train.checkpoint import newest

    one, other = newest(run.checkpoints), newest(expected.checkpoints)
    if one is None or other is None or not (other.path / "extra" / "capture.json").exists():
        return
    for number in range(len(list((other.path / "extra").glob("capture-mean-?????.safetensors")))):
        yield from _sums(one.path / "extra", other.path / "extra", number, tolerance)
    yield from index_differences(run.index("captured"), expected.index("captured"), exact=not tolerance)


def _sums(ours: Path, theirs: Path, number: int, tolerance: float) -> Iterator[str]:
    from headwater.attribution.capture.sums import read_state

    state, expected = read_state(ours, number), read_state(theirs, number)
    if not state["visits"].equal(expected["visits"]):
        yield f"captured sums: other visits in shard {number}"
    a, b = state["sums"].double(), expected["sums"].double()
    distance = float((a - b).norm() / b.norm())
    if distance > (CAPTURED if tolerance else 0.0):
        yield f"captured sums: shard {number} differs by {distance:.1e}"


def file_differences(
    directory: Path, expected: Path, *, but: Collection[str] = (), wanted: Callable[[Path], bool] = lambda path: True
) -> list[str]:
    """Every file of two directories, to the byte.

    Args:
        but: names of files that hold a time or a place.
        wanted: which files, by their paths in the directory.
    """

    def files(root: Path) -> dict[str, Path]:
        every = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in but)
        return {str(path.relative_to(root)): path for path in every if wanted(path.relative_to(root))}

    ours, theirs = files(directory), files(expected)
    found = [f"{name} is missing" for name in theirs if name not in ours]
    found += [f"{name} is one too many" for name in ours if name not in theirs]
    both = [name for name in theirs if name in ours]
    return found + [f"{name} differs" for name in both if ours[name].read_bytes() != theirs[name].read_bytes()]


def index_differences(index: Path, expected: Path, *, exact: bool) -> list[str]:
    """A whole index against another: its bytes, or where another layout made its rows, the rows within `CAPTURED`."""
    from headwater.attribution.index.reader import open_index
    from headwater.attribution.index.verify import verify
    from headwater.configs.errors import UserError

    try:
        verify(index)
    except UserError as error:
        return [f"index: {error.what}"]
    if exact:
        found = file_differences(index, expected, but=["index.json"])
        if manifest_of(index) != manifest_of(expected):
            found.append("index.json differs")
        return [f"index: {each}" for each in found]
    one, other = open_index(index), open_index(expected)
    if one.passages != other.passages or one.passage_ids[:] != other.passage_ids[:]:
        return ["index: other passages"]
    a, b = (each.rows(0, each.passages).double() for each in (one, other))
    distance = float((a - b).norm() / b.norm())
    return [f"index: rows differ by {distance:.1e}"] if distance > CAPTURED else []


def manifest_of(index: Path) -> str:
    """What an index says of itself, but for where its run is."""
    return (index / "index.json").read_text().replace(str(index.parents[1].absolute()), "RUN")
