"""Layouts of a run on given machines: what makes one impossible, and the nearest that work."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from headwater.attribution.settings import IndexSettings, ProjectionSettings
from headwater.configs import Problem, UserError, section, setting
from headwater.launch.machines.estimates import GIB, GPUS, Gpu, Layout, memory_of
from headwater.train.settings import ParallelSettings, PretrainSettings, ZeroSettings


@dataclass(kw_only=True, slots=True)
class CustomGpuSettings:
    """A GPU that is not in the list, or that has been measured: what is given here takes the place of its kind's."""

    memory: float | None = setting(None, "Its memory in GiB; also written gpu.memory.", above=0)
    tflops: float | None = setting(None, "Its dense peak in bf16, TFLOP/s; also written gpu.tflops.", above=0)
    fp32_tflops: float | None = setting(None, "Its peak in fp32, TFLOP/s; also written gpu.fp32_tflops.", above=0)


@dataclass(kw_only=True, slots=True)
class PlanSettings:
    """The machines, and what is assumed of them."""

    gpus: int = setting(8, "GPUs in all.", minimum=1)
    gpu: str = setting("h100", "Kind of GPU.", choices=tuple(GPUS))
    custom: CustomGpuSettings = section(CustomGpuSettings)
    gpus_per_node: int = setting(8, "GPUs of one machine; tensor parallelism stays within it.", minimum=1)
    mfu: float = setting(0.4, "Share of the GPUs' dense peak that is reached.", above=0, maximum=1)
    reserve_gib: float = setting(4.0, "Memory kept free for CUDA, NCCL and fragmentation, GiB.", minimum=0)
    epochs: float = setting(1.0, "Times that the run reads its corpus; sets the number of passages.", above=0)
    passages: int = setting(
        0, "Passages of the corpus; 0: as many of the longest length as the tokens give.", minimum=0
    )
    projection: int = setting(
        ProjectionSettings().dims, "Projected dimensions of each side of a module, in the index.", minimum=1
    )
    batch_tokens: int = setting(IndexSettings().batch_tokens, "Tokens of a batch of passages, in indexing.", minimum=1)
    queries: int = setting(1000, "Queries scanned at once.", minimum=1)
    read_gbs: float = setting(5.0, "GB/s at which one machine reads stored rows.", above=0)

    @property
    def device(self) -> Gpu:
        """The GPU, with what is given of it in place of its kind's."""
        kind, own = GPUS[self.gpu], self.custom
        return replace(
            kind,
            memory=kind.memory if own.memory is None else int(own.memory * GIB),
            bf16=kind.bf16 if own.tflops is None else own.tflops * 1e12,
            fp32=kind.fp32 if own.fp32_tflops is None else own.fp32_tflops * 1e12,
        )

    @property
    def device_name(self) -> str:
        """What it is called in messages."""
        return self.gpu if self.custom == CustomGpuSettings() else f"custom GPU ({self.device.memory / GIB:g} GiB)"


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


def room(machines: PlanSettings) -> int:
    """Bytes of a GPU that a run may fill."""
    return machines.device.memory - int(machines.reserve_gib * GIB)


def layout_problems(settings: PretrainSettings, machines: PlanSettings, vocab_size: int) -> Iterator[Problem]:
    """What makes a layout impossible; memory is looked at only where the rest is right."""
    broken = list(division_problems(settings, machines, vocab_size))
    yield from broken
    if broken:
        return
    memory = memory_of(settings, Layout.of(settings, machines.gpus), vocab_size)
    if memory.total > room(machines):
        allowed = f"at most {gib(room(machines))} ({machines.device_name}, less reserve_gib={machines.reserve_gib:g})"
        yield Problem("memory per GPU", gib(memory.total), allowed, "spread the model over more GPUs, or recompute")


def division_problems(settings: PretrainSettings, machines: PlanSettings, vocab_size: int) -> Iterator[Problem]:
    """What does not divide, or does not go together; memory is not looked at."""
    parallel, train = settings.parallel, settings.train
    t, p = parallel.tensor, parallel.pipeline
    yield from settings.problems()
    for problem in parallel.problems():
        yield replace(problem, key=f"parallel.{problem.key}")
    if vocab_size % t:
        yield Problem("parallel.tensor", t, f"a divisor of the vocabulary ({vocab_size})")
    if t > machines.gpus_per_node:
        yield Problem("parallel.tensor", t, f"at most gpus_per_node ({machines.gpus_per_node})")
    if machines.gpus % (t * p):
        yield Problem("gpus", machines.gpus, f"a multiple of parallel.tensor x parallel.pipeline ({t * p})")
        return
    rows = train.micro_batch * (machines.gpus // (t * p))
    if train.global_batch % rows:
        allowed = f"a multiple of train.micro_batch x data-parallel ranks ({rows})"
        yield Problem("train.global_batch", train.global_batch, allowed)


def refuse(settings: PretrainSettings, machines: PlanSettings, vocab_size: int, problems: list[Problem]) -> NoReturn:
    """Says what is wrong with a layout and which of the nearest work.

    Raises:
        UserError: always.
    """
    lines = "".join(f"\n  - {problem}" for problem in problems)
    near = nearest_layouts(settings, machines, vocab_size)
    fix = "use one of these:" + "".join(f"\n    {text}" for text in near) if near else None
    if not near:
        fix = "no layout of these GPUs works; take more GPUs, a smaller global batch per GPU, or train.recompute=full"
        enough = _enough_gpus(settings, machines, vocab_size)
        if enough:
            fix = f"no layout of {machines.gpus} GPUs works; the fewest that do, doubling: gpus={enough[0]} {enough[1]}"
    raise UserError(f"this layout cannot work on {machines.gpus} x {machines.device_name}:{lines}", fix=fix)


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
        memory = memory_of(changed, Layout.of(changed, machines.gpus), vocab_size)
        texts.append(f"{' '.join(_changes(settings, changed)) or '(as it is)'}   # {gib(memory.total)} per GPU")
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


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
