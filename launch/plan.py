"""`headwater plan CONFIG gpus=64 gpu=h100`: what a run needs, and layouts that work, before anything is launched.

    headwater plan pretrain/llama-8b gpus=64 gpu=h100 mfu=0.4 parallel.tensor=2

Everything is arithmetic (`estimates.py`): no GPU, no torch. Times follow from the stated share of the peak, `mfu`; they
are estimates, not measurements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from headwater.configs import ConfigError, Problem, UserError, load_config, setting
from headwater.launch import estimates
from headwater.launch.estimates import GIB, GPUS, Index, Layout, Memory, Operations, Parameters, Time
from headwater.train.settings import ParallelSettings, PretrainSettings, ZeroSettings

LAYOUT_KEYS = ("parallel.", "zero.", "train.global_batch")


@dataclass(kw_only=True, slots=True)
class PlanSettings:
    """The machines, and what is assumed of them."""

    gpus: int = setting(8, "GPUs in all.", minimum=1)
    gpu: str = setting("h100", "Kind of GPU.", choices=tuple(GPUS))
    gpus_per_node: int = setting(8, "GPUs of one machine; tensor parallelism stays within it.", minimum=1)
    mfu: float = setting(0.4, "Share of the GPUs' dense peak that is reached.", above=0, maximum=1)
    reserve_gib: float = setting(4.0, "Memory kept free for CUDA, NCCL and fragmentation, GiB.", minimum=0)
    epochs: float = setting(1.0, "Times that the run reads its corpus; sets the number of passages.", above=0)
    passages: int = setting(
        0, "Passages of the corpus; 0: as many of the longest length as the tokens give.", minimum=0
    )
    projection: int = setting(16, "Projected dimensions of each side of a module, in the index.", minimum=1)
    queries: int = setting(1000, "Queries scanned at once.", minimum=1)
    read_gbs: float = setting(5.0, "GB/s at which one machine reads stored rows.", above=0)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that `headwater plan` prints."""

    settings: PretrainSettings
    machines: PlanSettings
    layout: Layout
    parameters: Parameters
    memory: Memory
    left: int
    operations: Operations
    time: Time
    checkpoint: int
    index: Index

    @property
    def tokens(self) -> int:
        train = self.settings.train
        return train.steps * train.global_batch * self.settings.corpus.seq_len


def run_plan(config: str | None, overrides: Iterable[str], *, as_json: bool = False) -> None:
    """Prints the plan of a configuration, or says which layouts would work.

    Raises:
        UserError: the layout cannot work; the message names the nearest that do.
    """
    plan = make_plan(*load_plan(config, overrides))
    if as_json:
        print(json.dumps(summary(plan), indent=2))
    else:
        _print(plan)


def load_plan(config: str | None, overrides: Iterable[str]) -> tuple[PretrainSettings, PlanSettings]:
    """Loads both settings: an override whose key is one of PlanSettings' goes there, every other to the run's."""
    own = {field.name for field in fields(PlanSettings)}
    overrides = list(overrides)
    here = [text for text in overrides if text.partition("=")[0].strip() in own]
    there = [text for text in overrides if text not in here]
    problems: list[Problem] = []
    machines, settings = PlanSettings(), PretrainSettings()
    try:
        machines = load_config(PlanSettings, None, here)
    except ConfigError as error:
        problems += error.problems
    try:
        settings = load_config(PretrainSettings, config, there)
    except ConfigError as error:
        wrong = [problem for problem in error.problems if not problem.key.startswith(LAYOUT_KEYS)]
        problems += wrong
        if not wrong:
            # Only the layout is at fault: it is judged here, beside those that would work.
            settings = load_config(PretrainSettings, config, there, cross_checks=False)
    if problems:
        raise ConfigError(problems, f"configuration {config}" if config else "the configuration")
    return settings, machines


def make_plan(settings: PretrainSettings, machines: PlanSettings) -> Plan:
    """Computes the plan.

    Raises:
        UserError: the layout cannot work; the message names the nearest that do.
    """
    vocab_size = vocabulary(settings)
    problems = list(layout_problems(settings, machines, vocab_size))
    if problems:
        _refuse(settings, machines, vocab_size, problems)
    gpu, layout = GPUS[machines.gpu], Layout.of(settings, machines.gpus)
    parameters = estimates.count_parameters(settings.model, vocab_size)
    memory = estimates.memory_of(settings, layout, vocab_size)
    tokens = settings.train.steps * settings.train.global_batch * settings.corpus.seq_len
    length = min(settings.corpus.max_tokens, settings.corpus.seq_len)
    nodes = math.ceil(machines.gpus / machines.gpus_per_node)
    return Plan(
        settings=settings,
        machines=machines,
        layout=layout,
        parameters=parameters,
        memory=memory,
        left=_room(machines) - memory.total,
        operations=estimates.operations_of(settings, vocab_size),
        time=estimates.time_of(settings, layout, vocab_size, gpu, machines.gpus, machines.mfu),
        checkpoint=estimates.checkpoint_bytes(parameters),
        index=estimates.index_of(
            settings,
            vocab_size,
            gpu,
            machines.gpus,
            mfu=machines.mfu,
            projection=machines.projection,
            passages=machines.passages or math.ceil(tokens / machines.epochs / length),
            queries=machines.queries,
            read_bandwidth=machines.read_gbs * 1e9 * nodes,
        ),
    )


def vocabulary(settings: PretrainSettings) -> int:
    """Rows of the embedding: as configured, else of the tokenizer file, else of the tokenizer to be trained."""
    if settings.model.vocab_size:
        return settings.model.vocab_size
    tokenizer = settings.corpus.tokenizer
    if not tokenizer.path:
        return tokenizer.vocab_size
    try:
        content = json.loads(Path(tokenizer.path).read_text(encoding="utf-8"))
        added = [token["id"] for token in content.get("added_tokens", [])]
        return max([*content["model"]["vocab"].values(), *added]) + 1
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(
            f"{tokenizer.path} is not a tokenizer.json that can be read",
            fix="give model.vocab_size, or mend corpus.tokenizer.path",
        ) from None


def _room(machines: PlanSettings) -> int:
    return GPUS[machines.gpu].memory - int(machines.reserve_gib * GIB)


def layout_problems(settings: PretrainSettings, machines: PlanSettings, vocab_size: int) -> Iterator[Problem]:
    """What makes a layout impossible; memory is looked at only where the rest is right."""
    broken = list(division_problems(settings, machines, vocab_size))
    yield from broken
    if broken:
        return
    memory = estimates.memory_of(settings, Layout.of(settings, machines.gpus), vocab_size)
    if memory.total > _room(machines):
        allowed = f"at most {_gib(_room(machines))} ({machines.gpu}, less reserve_gib={machines.reserve_gib:g})"
        yield Problem("memory per GPU", _gib(memory.total), allowed, "spread the model over more GPUs, or recompute")


def division_problems(settings: PretrainSettings, machines: PlanSettings, vocab_size: int) -> Iterator[Problem]:
    """What does not divide, or does not go together; memory is not looked at."""
    model, parallel, train = settings.model, settings.parallel, settings.train
    t, p = parallel.tensor, parallel.pipeline
    shared = {
        "model.heads": model.heads,
        "model.kv_heads": model.kv_heads,
        "model.ffn_hidden": model.ffn_hidden,
        "the vocabulary": vocab_size,
    }
    for name, size in shared.items():
        if size % t:
            yield Problem("parallel.tensor", t, f"a divisor of {name} ({size})")
    if t > machines.gpus_per_node:
        yield Problem("parallel.tensor", t, f"at most gpus_per_node ({machines.gpus_per_node})")
    if model.layers % p:
        yield Problem("parallel.pipeline", p, f"a divisor of model.layers ({model.layers})")
    if p > 1 and settings.zero.stage > 1:
        yield Problem("zero.stage", settings.zero.stage, "0 or 1 when parallel.pipeline is above 1")
    if parallel.sequence and t == 1:
        yield Problem("parallel.sequence", True, "false when parallel.tensor is 1")
    elif parallel.sequence and train.micro_batch * settings.corpus.seq_len % t:
        yield Problem("parallel.sequence", True, "micro_batch x seq_len divisible by parallel.tensor")
    if machines.gpus % (t * p):
        yield Problem("gpus", machines.gpus, f"a multiple of parallel.tensor x parallel.pipeline ({t * p})")
        return
    rows = train.micro_batch * (machines.gpus // (t * p))
    if train.global_batch % rows:
        allowed = f"a multiple of train.micro_batch x data-parallel ranks ({rows})"
        yield Problem("train.global_batch", train.global_batch, allowed)


def _refuse(settings: PretrainSettings, machines: PlanSettings, vocab_size: int, problems: list[Problem]) -> None:
    lines = "".join(f"\n  - {problem}" for problem in problems)
    near = nearest_layouts(settings, machines, vocab_size)
    fix = "use one of these:" + "".join(f"\n    {text}" for text in near) if near else None
    if not near:
        fix = "no layout of these GPUs works; take more GPUs, a smaller global batch per GPU, or train.recompute=full"
        enough = _enough_gpus(settings, machines, vocab_size)
        if enough:
            fix = f"no layout of {machines.gpus} GPUs works; the fewest that do, doubling: gpus={enough[0]} {enough[1]}"
    raise UserError(f"this layout cannot work on {machines.gpus} x {machines.gpu}:{lines}", fix=fix)


def _enough_gpus(settings: PretrainSettings, machines: PlanSettings, vocab_size: int) -> tuple[int, str] | None:
    gpus = machines.gpus
    for _ in range(8):
        gpus *= 2
        near = nearest_layouts(settings, replace(machines, gpus=gpus), vocab_size, count=1)
        if near:
            return gpus, near[0]
    return None


def nearest_layouts(settings: PretrainSettings, machines: PlanSettings, vocab_size: int, count: int = 3) -> list[str]:
    """Layouts that work, fewest and smallest changes first: the overrides that make them, and the memory they take."""
    found = []
    for changed in _variants(settings, machines):
        if next(layout_problems(changed, machines, vocab_size), None) is None:
            found.append((_distance(settings, changed), changed))
    found.sort(key=lambda each: each[0])
    texts = []
    for _, changed in found[:count]:
        memory = estimates.memory_of(changed, Layout.of(changed, machines.gpus), vocab_size)
        texts.append(f"{' '.join(_changes(settings, changed)) or '(as it is)'}   # {_gib(memory.total)} per GPU")
    return texts


def _variants(settings: PretrainSettings, machines: PlanSettings) -> Iterator[PretrainSettings]:
    model, train = settings.model, settings.train
    recomputes = dict.fromkeys([train.recompute, "full"])
    for tensor in _divisors(model.kv_heads, min(machines.gpus_per_node, machines.gpus)):
        for pipeline in _divisors(model.layers, machines.gpus // tensor):
            for sequence in (
                [settings.parallel.sequence] if tensor == 1 else dict.fromkeys([settings.parallel.sequence, True])
            ):
                parallel = ParallelSettings(tensor=tensor, pipeline=pipeline, sequence=sequence and tensor > 1)
                for micro in _divisors(train.global_batch, max(train.micro_batch, 1)):
                    for stage in (0, 1) if pipeline > 1 else (0, 1, 2, 3):
                        for recompute in recomputes:
                            yield replace(
                                settings,
                                parallel=parallel,
                                zero=ZeroSettings(stage=stage),
                                train=replace(train, micro_batch=micro, recompute=recompute),
                            )


def _divisors(number: int, limit: int) -> list[int]:
    return [each for each in range(1, min(number, limit) + 1) if number % each == 0]


def _distance(one: PretrainSettings, other: PretrainSettings) -> float:
    """How far a layout is from another: doublings of the parallel degrees, and what else costs speed."""
    steps = (
        abs(math.log2(one.parallel.tensor / other.parallel.tensor))
        + abs(math.log2(one.parallel.pipeline / other.parallel.pipeline))
        + abs(math.log2(one.train.micro_batch / other.train.micro_batch))
        + abs(one.zero.stage - other.zero.stage)
    )
    return (
        steps
        + (one.train.recompute != other.train.recompute)
        + 0.25 * (one.parallel.sequence != other.parallel.sequence)
    )


def _changes(before: PretrainSettings, after: PretrainSettings) -> Iterator[str]:
    keys = [
        "parallel.tensor",
        "parallel.pipeline",
        "parallel.sequence",
        "zero.stage",
        "train.micro_batch",
        "train.recompute",
    ]
    for key in keys:
        section, name = key.split(".")
        old, new = getattr(getattr(before, section), name), getattr(getattr(after, section), name)
        if old != new:
            yield f"{key}={str(new).lower()}"


def summary(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, seconds, FLOPs."""
    memory = {**asdict(plan.memory), "total": plan.memory.total, "left": plan.left}
    return {
        "machines": asdict(plan.machines),
        "layout": asdict(plan.layout),
        "parameters": {**asdict(plan.parameters), "total": plan.parameters.total},
        "memory": memory,
        "tokens": plan.tokens,
        "flops_per_step": plan.operations.total * plan.settings.train.global_batch * plan.settings.corpus.seq_len,
        "flops_per_token": {**asdict(plan.operations), "model": plan.operations.model},
        "time": asdict(plan.time),
        "checkpoint_bytes": plan.checkpoint,
        "index": asdict(plan.index),
    }


def _print(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for title, rows in _tables(plan):
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
        )
        table.add_column(min_width=24)
        table.add_column(justify="right", min_width=14)
        table.add_column(style="dim")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    console.print(f"Times assume {plan.machines.mfu:.0%} of the peak (mfu=): estimates, not measurements.", style="dim")


def _tables(plan: Plan) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    parameters, memory, time, index, layout = plan.parameters, plan.memory, plan.time, plan.index, plan.layout
    step_flops = summary(plan)["flops_per_step"]
    yield (
        "Model",
        [
            ("parameters", f"{parameters.total:,}", "exact"),
            ("of the layers' matrices", f"{parameters.matrices:,}", ""),
            ("of embedding and head", f"{parameters.embedding + parameters.head:,}", ""),
        ],
    )
    degrees = f"tensor {layout.tensor}, pipeline {layout.pipeline}, data {layout.data}"
    ranks = f"{plan.machines.gpus} x {plan.machines.gpu}: {degrees}"
    yield (
        f"Memory per GPU ({ranks})",
        [
            ("weights", _gib(memory.weights), ""),
            ("gradients", _gib(memory.gradients), ""),
            ("master weights, moments", _gib(memory.moments), f"ZeRO-{layout.zero}"),
            (
                "activations",
                _gib(memory.activations),
                f"micro-batch {layout.micro_batch}, recompute {layout.recompute}",
            ),
            ("head and loss", _gib(memory.head), ""),
            ("reduction bucket", _gib(memory.communication), ""),
            ("at the peak", _gib(memory.total), "the most loaded stage"),
            ("left", _gib(plan.left), f"after {plan.machines.reserve_gib:g} GiB for CUDA and NCCL"),
        ],
    )
    yield (
        "Training",
        [
            ("tokens", _count(plan.tokens), f"{plan.settings.train.steps:,} steps"),
            ("FLOPs per step", _count(step_flops), "recomputation included"),
            ("step", _seconds(time.step), f"pipeline bubble {time.bubble:.0%}"),
            ("tokens per second", _count(time.tokens_per_second), ""),
            ("in all", f"{time.days:.3g} days", ""),
            ("checkpoint", _bytes(plan.checkpoint), "weights and moments, fp32"),
        ],
    )
    yield (
        f"Index of {_count(index.passages)} passages, {index.dims:,} dimensions",
        [
            *(
                (codec, _bytes(size), f"scan of {plan.machines.queries:,} queries {_seconds(index.scan[codec])}")
                for codec, size in index.bytes.items()
            ),
            *((f"collecting, {name}", _seconds(seconds), "") for name, seconds in index.collect.items()),
        ],
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} Z"


def _seconds(seconds: float) -> str:
    for limit, divisor, unit in ((1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
