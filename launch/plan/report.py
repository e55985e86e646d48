"""`headwater plan CONFIG gpus=64 gpu=h100`: what a run needs, and layouts that work, before anything is launched.

    headwater plan pretrain/llama-8b gpus=64 gpu=h100 mfu=0.4 parallel.tensor=2

Everything is arithmetic (`estimates.py`): no GPU, no torch. Times follow from the stated share of the peak, `mfu`; they
are estimates, not measurements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from headwater.configs import ConfigError, Problem, load_config
from headwater.configs.sources import find_config, read_with_bases
from headwater.launch.plan.estimates import (
    GPUS,
    Index,
    Layout,
    Memory,
    Operations,
    Parameters,
    Time,
    checkpoint_bytes,
    count_parameters,
    index_of,
    memory_of,
    operations_of,
    time_of,
)
from headwater.launch.plan.layouts import PlanSettings, gib, layout_problems, refuse, room, vocabulary
from headwater.train.settings import PretrainSettings

LAYOUT_KEYS = ("parallel.", "zero.", "train.global_batch")


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
    """Loads both settings: an override whose key is one of PlanSettings' goes there, every other to the run's.

    Of a configuration that names a pretraining, a study or a demo, that pretraining is planned.
    """
    config, more = named_pretraining(config)
    own = {field.name for field in fields(PlanSettings)}
    overrides = list(overrides)
    here = [text for text in overrides if text.partition("=")[0].strip() in own]
    there = [*more, *(text for text in overrides if text not in here)]
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


def named_pretraining(config: str | None) -> tuple[str | None, list[str]]:
    """The pretraining that a configuration names as its `preset`, with its overrides of it; else the one given."""
    tree = read_with_bases(find_config(config)) if config is not None else {}
    if "preset" not in tree:
        return config, []
    return str(tree["preset"]), [str(each) for each in tree.get("pretrain") or []]


def make_plan(settings: PretrainSettings, machines: PlanSettings) -> Plan:
    """Computes the plan.

    Raises:
        UserError: the layout cannot work; the message names the nearest that do.
    """
    vocab_size = vocabulary(settings)
    problems = list(layout_problems(settings, machines, vocab_size))
    if problems:
        refuse(settings, machines, vocab_size, problems)
    gpu, layout = GPUS[machines.gpu], Layout.of(settings, machines.gpus)
    parameters = count_parameters(settings.model, vocab_size)
    memory = memory_of(settings, layout, vocab_size)
    tokens = settings.train.steps * settings.train.global_batch * settings.corpus.seq_len
    length = min(settings.corpus.max_tokens, settings.corpus.seq_len)
    nodes = math.ceil(machines.gpus / machines.gpus_per_node)
    return Plan(
        settings=settings,
        machines=machines,
        layout=layout,
        parameters=parameters,
        memory=memory,
        left=room(machines) - memory.total,
        operations=operations_of(settings, vocab_size),
        time=time_of(settings, layout, vocab_size, gpu, machines.gpus, machines.mfu),
        checkpoint=checkpoint_bytes(parameters),
        index=index_of(
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
            ("weights", gib(memory.weights), ""),
            ("gradients", gib(memory.gradients), ""),
            ("master weights, moments", gib(memory.moments), f"ZeRO-{layout.zero}"),
            (
                "activations",
                gib(memory.activations),
                f"micro-batch {layout.micro_batch}, recompute {layout.recompute}",
            ),
            ("head and loss", gib(memory.head), ""),
            ("fp32 sums of gradients", gib(memory.sums), f"{layout.micro_batches} micro-batches"),
            ("reduction bucket", gib(memory.communication), ""),
            ("at the peak", gib(memory.total), "the most loaded stage"),
            ("left", gib(plan.left), f"after {plan.machines.reserve_gib:g} GiB for CUDA and NCCL"),
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
