"""What an index and its search need, by arithmetic alone: bytes on disk, seconds, memory of a rank.

Letters as in `estimates.py`, and D numbers of a row, k projected dimensions of each side of a module, Q queries. Sizes
are bytes and times seconds. Everything is computed, nothing measured; `tests/launch/plan` holds bytes and memory
against small builds and scans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from headwater.launch.machines.estimates import (
    LOSS_CHUNK,
    Gpu,
    Layout,
    count_parameters,
    layer_activations,
    operations_of,
)
from headwater.train.settings import ModelSettings, PretrainSettings

MODULES_OF_A_LAYER = 4

TABLE_BYTES = 12
"""Of a passage in an index's tables, about: its id, packed, and where it is found."""

WINDOW_BYTES = 64 << 20
"""Rows that a rank has in hand at a time, float32 (attribution/index)."""

WINDOWS = 3
"""As they come, as they are handed on, and the one before, which is being written."""

KEPT_BYTES = 1 << 30
"""Most rows of the curvature's sample that a rank keeps for the index (attribution/index/build.py)."""

BLOCK_BYTES = 32 << 20
"""Of the rows that a scan has decoded, with their scores (attribution/search/blocks.py)."""

HALF_BYTES = 1 << 28
"""Of the halves of a row under an elementwise correction on a GPU (kernels/triton_full.py)."""


@dataclass(frozen=True, slots=True)
class Collecting:
    """Memory of one rank that makes rows: on its GPU, and beside it.

    `weights` are frozen: they have no gradients and no moments. `projections` are the +-1 matrices, as drawn and as the
    kernels read them; `correction` likewise. `rows` are those of two batches.
    """

    weights: int
    projections: int
    correction: int
    activations: int
    head: int
    rows: int
    host: int

    @property
    def device(self) -> int:
        """On the GPU."""
        return self.weights + self.projections + self.correction + self.activations + self.head + self.rows


@dataclass(frozen=True, slots=True)
class Searching:
    """Memory of one rank that scans, in the machine.

    preparing: while the queries are made ready.
    scanning: what is made of them, with the task's directions, and a block of rows.
    """

    preparing: int
    scanning: int

    @property
    def total(self) -> int:
        return max(self.preparing, self.scanning)


@dataclass(frozen=True, slots=True)
class Index:
    """An index of every passage.

    Attributes:
        dims, modules: of a row.
        bytes: of the rows and their norms, by codec.
        tables: bytes of what lies beside them: ids, lookups, curvature.
        collect: seconds by correction.
        scan: seconds by codec.
        collecting: memory of a rank by correction.
        searching: memory of a rank.
    """

    passages: int
    dims: int
    modules: int
    bytes: dict[str, int]
    tables: int
    collect: dict[str, float]
    scan: dict[str, float]
    collecting: dict[str, Collecting]
    searching: Searching


def index_of(
    settings: PretrainSettings,
    vocab_size: int,
    gpu: Gpu,
    gpus: int,
    *,
    mfu: float,
    projection: int,
    passages: int,
    queries: int,
    read_bandwidth: float,
    batch_tokens: int = 2048,
    sample: int = 4096,
) -> Index:
    """What an index of `passages` costs.

    Args:
        projection: projected dimensions of each side of a module.
        queries: queries scanned at once, which are their own task.
        read_bandwidth: bytes/s at which all readers together read the stored rows.
        batch_tokens: of a batch of passages whose rows are made.
        sample: passages that the curvature is made from.
    """
    model = settings.model
    modules = MODULES_OF_A_LAYER * model.layers
    dims = modules * projection**2
    sizes = {codec: passages * (size + 8) for codec, size in row_bytes(modules, projection).items()}
    tokens = passages * min(settings.corpus.max_tokens, settings.corpus.seq_len)
    forward = operations_of(settings, vocab_size).model / 3
    projecting = model.layers * projection * (2 * sides_of_a_layer(model) + 2 * MODULES_OF_A_LAYER * projection)
    # Factored: forward, the input half of backward, and projections. Full Adam: each passage's gradient as well.
    operations = {"adafactor": 2 * forward + projecting, "adam": 3 * forward + projecting}
    speed = gpus * gpu.peak(settings.train.precision) * mfu
    multiply = 2.0 * passages * dims * queries / (gpus * gpu.peak("bf16") * mfu)
    layout = Layout.of(settings, gpus)
    kept = min(KEPT_BYTES, math.ceil(min(sample or passages, passages) / layout.data) * 4 * dims)
    return Index(
        passages=passages,
        dims=dims,
        modules=modules,
        bytes=sizes,
        tables=passages * TABLE_BYTES + curvature_bytes(modules, projection),
        collect={name: tokens * each / speed for name, each in operations.items()},
        scan={codec: max(size / read_bandwidth, multiply) for codec, size in sizes.items()},
        collecting={
            name: collecting_of(settings, layout, vocab_size, projection, batch_tokens, name, kept=kept)
            for name in ("none", "adafactor", "adam")
        },
        searching=searching_of(modules, projection, queries),
    )


def sides_of_a_layer(model: ModelSettings) -> int:
    """Outputs and inputs of a layer's four modules."""
    h, f, q, kv = model.hidden, model.ffn_hidden, model.query_width, model.key_width
    return (h + q + 2 * kv) + (q + h) + (h + 2 * f) + (f + h)


def row_bytes(modules: int, projection: int) -> dict[str, int]:
    """Bytes of a stored row by codec, without its norms."""
    dims = modules * projection**2
    return {
        "fp32": 4 * dims,
        "bf16": 2 * dims,
        "int8": dims + 2 * modules,
        "int4": dims // 2 + 2 * modules,
        "sign": dims // 8 + 2 * modules,
        **{f"factors{terms}": modules * terms * (-(-2 * projection // 8) + 2) for terms in (16, 8, 4)},
    }


def curvature_bytes(modules: int, projection: int) -> int:
    """Bytes of a Kronecker-factored curvature on disk: a root and its eigenvalues for each side of a module."""
    return modules * 2 * 4 * (projection**2 + projection)


def collecting_of(
    settings: PretrainSettings,
    layout: Layout,
    vocab_size: int,
    projection: int,
    batch_tokens: int,
    correction: str,
    *,
    kept: int = 0,
    fused: bool = True,
) -> Collecting:
    """Memory of the most loaded rank while it makes rows, passages of the longest length.

    Args:
        kept: bytes of the curvature's sample that the rank keeps.
        fused: as on a GPU; else as on a CPU.
    """
    model, precision = settings.model, settings.train.precision
    parameters = count_parameters(model, vocab_size)
    e = 2 if precision == "bf16" else 4
    layers, alone = model.layers // layout.pipeline, layout.pipeline == 1
    last = max(parameters.on_stage(layout, True, alone), parameters.on_stage(layout, alone, True))
    matrices = layers * parameters.matrices_of_a_layer // layout.tensor
    sides = layers * sides_of_a_layer(model) // layout.tensor
    one = layer_activations(_with_batch(settings, batch_tokens), _one_micro_batch(layout), fused=fused)
    rows = vocab_size // layout.tensor
    modules = MODULES_OF_A_LAYER * model.layers
    dims = modules * projection**2
    length = min(settings.corpus.max_tokens, settings.corpus.seq_len)
    # As they are drawn, float32, and as the kernels read them; so are elementwise factors, whole for each module.
    read = 2 if fused and precision == "bf16" else 4
    elementwise = matrices * (4 + read) + (HALF_BYTES if fused else 0)
    corrections = {"none": 0, "adafactor": 4 * sides, "adam": elementwise}
    sums = modules * 2 * 2 * 8 * projection**2
    return Collecting(
        weights=last * e,
        projections=sides * projection * (4 + read),
        correction=corrections[correction],
        activations=int(layers * one),
        head=batch_tokens * 4 * model.hidden * e + min(LOSS_CHUNK, batch_tokens) * rows * (4 if e == 4 else 4 + e),
        rows=2 * max(batch_tokens // length, 1) * dims * 4,
        host=WINDOWS * max(WINDOW_BYTES, 4 * dims) + sums + kept,
    )


def _with_batch(settings: PretrainSettings, tokens: int) -> PretrainSettings:
    """The settings with a sequence of so many tokens, packed with passages no longer than before."""
    longest = min(settings.corpus.max_tokens, settings.corpus.seq_len)
    return replace(settings, corpus=replace(settings.corpus, seq_len=tokens, max_tokens=min(longest, tokens)))


def _one_micro_batch(layout: Layout) -> Layout:
    return replace(layout, micro_batch=1, recompute="none")


def searching_of(modules: int, projection: int, queries: int) -> Searching:
    """Memory of a rank that scans with the curvature of the queries' own task.

    While the queries are made ready there are four forms of them in float32, two of these in float64 too, and their
    product; then three, and the directions as they are and as the codec has them.
    """
    numbers = queries * modules * projection**2
    directions = 4 * modules * min(queries, projection**2) * projection**2
    return Searching(preparing=40 * numbers + directions, scanning=12 * numbers + 2 * directions + BLOCK_BYTES)
