"""`headwater plan CONFIG gpus=64 gpu=h100`: what a run needs, and layouts that work, before anything is launched.

    headwater plan pretrain/llama-8b gpus=64 gpu=h100 mfu=0.4 parallel.tensor=2

Everything is arithmetic (`estimates.py`): no GPU, no torch. Times follow from the stated share of the peak, `mfu`; they
are estimates, not measurements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from headwater.configs import ConfigError, Problem, load_config
from headwater.launch.machines.estimates import (
    Layout,
    Memory,
    Operations,
    Parameters,
    Time,
    checkpoint_bytes,
    count_parameters,
    memory_of,
    operations_of,
    time_of,
    updates,
)
from headwater.launch.machines.indexing import Index, index_of
from headwater.launch.machines.layouts import PlanSettings, gib, layout_problems, refuse, room, vocabulary
from headwater.launch.plan.projects import RUN_KEYS, Project, Work, project_of, whole_work
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
        return updates(self.settings) * self.settings.train.global_batch * self.settings.corpus.seq_len


def run_plan(config: str | None, overrides: Iterable[str], *, as_json: bool = False) -> None:
    """Prints the plan of a configuration, or says which layouts would work.

    Of a study, a sweep or a demo, one training is planned, and then all of them are counted.

    Raises:
        UserError: the layout cannot work; the message names the nearest that do.
    """
    overrides = list(overrides)
    plan = make_plan(*load_plan(config, overrides))
    whole = whole_work(config, overrides, plan.settings)
    if as_json:
        trainings = [asdict(work) | {"days": work.days(plan.time.step)} for work in whole]
        print(json.dumps({**summary(plan), **({"trainings": trainings} if whole else {})}, indent=2))
    else:
        _print(plan, whole)


def load_plan(config: str | None, overrides: Iterable[str]) -> tuple[PretrainSettings, PlanSettings]:
    """Loads both settings: an override whose key is one of PlanSettings' goes there, every other to the run's.

    Of a configuration that names a pretraining, a study or a demo, that pretraining is planned.
    """
    project = project_of(config)
    given, more = (config, []) if project is None else project.pretraining()
    here, there, unknown = sort_overrides(overrides, project)
    problems: list[Problem] = list(unknown)
    machines, settings = PlanSettings(), PretrainSettings()
    try:
        machines = load_config(PlanSettings, None, here)
    except ConfigError as error:
        problems += error.problems
    try:
        settings = load_config(PretrainSettings, given, [*more, *there])
    except ConfigError as error:
        wrong = [problem for problem in error.problems if not problem.key.startswith(LAYOUT_KEYS)]
        problems += wrong
        if not wrong:
            # Only the layout is at fault: it is judged here, beside those that would work.
            settings = load_config(PretrainSettings, given, [*more, *there], cross_checks=False)
    if problems:
        raise ConfigError(problems, f"configuration {config}" if config else "the configuration")
    return settings, machines


def sort_overrides(overrides: Iterable[str], project: Project | None) -> tuple[list[str], list[str], list[Problem]]:
    """Overrides of the machines, those of the pretraining, and what is neither nor one of the study's own."""
    machines = {field.name for field in fields(PlanSettings)}
    study = project.keys if project is not None else set()
    here, there, unknown = [], [], []
    for text in overrides:
        key, equals, value = text.partition("=")
        top = key.strip().removesuffix("+").partition(".")[0]
        if key.strip().startswith("gpu."):
            here.append(f"custom.{text.strip().removeprefix('gpu.')}")
        elif top in machines:
            here.append(text)
        elif project is not None and project.owns(key):
            continue
        elif top in RUN_KEYS or not equals:
            there.append(text)
        else:
            near = get_close_matches(top, [*machines, *RUN_KEYS, *study], n=1)
            expected = f"a setting of the machines ({', '.join(sorted(machines))}) or of the run"
            unknown.append(Problem(key, value, expected, f"did you mean {near[0]}?" if near else None))
    return here, there, unknown


def make_plan(settings: PretrainSettings, machines: PlanSettings) -> Plan:
    """Computes the plan.

    Raises:
        UserError: the layout cannot work; the message names the nearest that do.
    """
    vocab_size = vocabulary(settings)
    problems = list(layout_problems(settings, machines, vocab_size))
    if problems:
        refuse(settings, machines, vocab_size, problems)
    gpu, layout = machines.device, Layout.of(settings, machines.gpus)
    parameters = count_parameters(settings.model, vocab_size)
    memory = memory_of(settings, layout, vocab_size)
    tokens = updates(settings) * settings.train.global_batch * settings.corpus.seq_len
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
            batch_tokens=machines.batch_tokens,
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
        "index": {
            **asdict(plan.index),
            "collecting": {
                name: {**asdict(each), "device": each.device} for name, each in plan.index.collecting.items()
            },
            "searching": {**asdict(plan.index.searching), "total": plan.index.searching.total},
        },
    }


def _print(plan: Plan, whole: Sequence[Work] = ()) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for title, rows in [*_tables(plan), *_whole_tables(plan, whole)]:
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
    console.print(
        f"Times assume {plan.machines.mfu:.0%} of the peak (mfu=). All of this is computed, not measured.", style="dim"
    )


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
    ranks = f"{plan.machines.gpus} x {plan.machines.device_name}: {degrees}"
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
            ("tokens", _count(plan.tokens), _steps(plan.settings)),
            ("FLOPs per step", _count(step_flops), "recomputation included"),
            ("step", _seconds(time.step), f"pipeline bubble {time.bubble:.0%}"),
            ("tokens per second", _count(time.tokens_per_second), ""),
            ("in all", _seconds(86400 * time.days), ""),
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
            ("ids, lookup, curvature", _bytes(index.tables), "beside any of them"),
        ],
    )
    yield (
        "Making it, on a rank",
        [
            *((f"seconds, {name}", _seconds(seconds), "on all GPUs") for name, seconds in index.collect.items()),
            *(
                (
                    f"GPU memory, {name}",
                    gib(each.device),
                    f"of the correction {gib(each.correction)}" if each.correction else "",
                )
                for name, each in index.collecting.items()
            ),
            ("beside the GPU", gib(index.collecting["none"].host), "rows in hand, curvature"),
        ],
    )
    yield (
        f"Searching it, {plan.machines.queries:,} queries at once, on a rank",
        [
            ("at the peak", gib(index.searching.total), "the same for any number of passages"),
            ("while it scans", gib(index.searching.scanning), "a block, the queries, their task's curvature"),
        ],
    )


def _steps(settings: PretrainSettings) -> str:
    made, scheduled = updates(settings), settings.train.steps
    return f"{made:,} steps" + (f" (train.hard_stop; the schedule has {scheduled:,})" if made < scheduled else "")


def _whole_tables(plan: Plan, whole: Sequence[Work]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    if not whole:
        return
    seconds = [86400 * work.days(plan.time.step) for work in whole]
    rows = [
        (work.what, _seconds(each), f"{work.count:,} x {work.steps:,} steps")
        for work, each in zip(whole, seconds, strict=True)
    ]
    yield "All of it, one training after another", [*rows, ("in all", _seconds(sum(seconds)), "trainings alone")]


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
