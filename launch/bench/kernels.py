"""What the projection kernels cost.

    headwater bench kernels
    headwater bench kernels --compile sm_80,sm_90,gfx942 --json FILE

On a CPU: the time of each variant as a ratio to the layer's own weight gradient product, and to the floor. On a GPU:
time, TFLOP/s, GB/s and the part of the floor reached. With compile targets: what every shipped Triton configuration
needs of a multiprocessor, without a GPU.

Shapes: B segments of S tokens each, O outputs, I inputs, k x k the projected gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headwater.configs.errors import UserError
from headwater.launch.bench.timing import interleaved

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from headwater.kernels import Factored, Full

CPU_SHAPES = [(512, 512, 256, 16), (1024, 1024, 256, 16), (688, 256, 64, 16), (256, 256, 64, 16)]
GPU_SHAPES = {"1B": [(2048, 2048), (8192, 2048), (2048, 8192)], "8B": [(4096, 4096), (14336, 4096), (4096, 14336)]}
SIDES = (16, 32, 64, 128)
H100_FLOPS, H100_BYTES = 790e12, 3.0e12
"""What an H100 sustains in bf16 products and in reading memory: the floor that GPU times are compared with."""


def make_layer(
    outputs: int, inputs: int, tokens: int, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Full, Factored]:
    """Random delta [T, O], a [T, I], and the correction of each kind; in float32 unless told otherwise."""
    import torch

    from headwater.kernels import Factored, Full

    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) + 0.1

    delta_TO = (draw(tokens, outputs) - 0.6).to(dtype)
    a_TI = (draw(tokens, inputs) - 0.6).to(dtype)
    return delta_TO, a_TI, Full(draw(outputs, inputs)), Factored(draw(outputs), draw(inputs))


def flop_ratio(outputs: int, inputs: int, length: int, k: int) -> dict[str, float]:
    """Multiplications of each variant, in weight gradient products of the layer (2 S O I each)."""
    full = 1 + k / length + k * k / (length * outputs)
    return {"full": full, "factored": k / outputs + k / inputs + k * k / (outputs * inputs)}


def cpu_case(outputs: int, inputs: int, length: int, segments: int) -> list[dict]:
    """One row of results per side of the projection."""
    import torch

    from headwater.kernels import Projector, signs

    delta_TO, a_TI, full, factored = make_layer(outputs, inputs, length * segments)
    bounds = torch.arange(segments + 1, dtype=torch.int32) * length
    gradient_OI = torch.empty(outputs, inputs)
    variants: dict[str, Callable[[], object]] = {
        "weight gradient": lambda: torch.mm(delta_TO.T, a_TI, out=gradient_OI),
        "read": lambda: (delta_TO.sum(), a_TI.sum()),
    }
    for k in SIDES:
        left_Ok, right_Ik = signs(0, "output", outputs, k), signs(0, "input", inputs, k)
        for name, correction in (("full", full), ("factored", factored)):
            projector = Projector(left_Ok, right_Ik, correction)
            variants[f"{name} {k}"] = partial(projector.rows, delta_TO, a_TI, bounds)
    seconds = interleaved(variants)
    unit = seconds["weight gradient"]
    results = []
    for k in SIDES:
        for name, ratio in flop_ratio(outputs, inputs, length, k).items():
            taken = seconds[f"{name} {k}"]
            # A thin product cannot be faster than its arithmetic, nor than reading delta and a once.
            floor = max(ratio * unit, seconds["read"])
            results.append(
                {
                    "variant": name,
                    "shape": [outputs, inputs],
                    "length": length,
                    "segments": segments,
                    "k": k,
                    "seconds": taken,
                    "weight_gradients": taken / unit,
                    "flop_floor": ratio,
                    "times_flop_floor": taken / (ratio * unit),
                    "times_floor": taken / floor,
                    "weight_gradient_gflops": 2e-9 * length * segments * outputs * inputs / unit,
                }
            )
    return results


def bench_cpu() -> list[dict]:
    """Prints and returns the CPU table; one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print("CPU, float32, one thread, process time, medians of interleaved rounds")
    print("variant   layer O x I    B x S      k   weight gradients   x FLOP floor   x floor (FLOPs or reading)")
    results = []
    try:
        for outputs, inputs, length, segments in CPU_SHAPES:
            for row in cpu_case(outputs, inputs, length, segments):
                results.append(row)
                layer, batch = f"{outputs} x {inputs}", f"{segments} x {length}"
                ratios = (
                    f"{row['weight_gradients']:16.3f}   {row['times_flop_floor']:12.2f}   {row['times_floor']:7.2f}"
                )
                print(f"{row['variant']:9} {layer:14} {batch:9} {row['k']:3}   {ratios}", flush=True)
    finally:
        torch.set_num_threads(threads)
    return results


def _gpu_clock() -> float:
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def bench_gpu(length: int = 512, segments: int = 16) -> list[dict]:
    """Prints and returns the GPU table, bf16; the floor is an H100's."""
    import torch

    from headwater.kernels import Projector, signs

    print(f"{torch.cuda.get_device_name()}, bfloat16, {segments} segments of {length} tokens")
    print("model variant   layer O x I       k      ms   TFLOP/s    GB/s   of the H100 floor")
    results = []
    bounds = torch.arange(segments + 1, dtype=torch.int32, device="cuda") * length
    for model, shapes in GPU_SHAPES.items():
        for outputs, inputs in shapes:
            delta_TO, a_TI, full, factored = make_layer(outputs, inputs, length * segments, "cuda", torch.bfloat16)
            unit = 2 * length * segments * outputs * inputs
            variants: dict[str, Callable[[], object]] = {}
            for k in SIDES:
                left_Ok = signs(0, "output", outputs, k, device="cuda")
                right_Ik = signs(0, "input", inputs, k, device="cuda")
                for name, correction in (("full", full), ("factored", factored)):
                    projector = Projector(left_Ok, right_Ik, correction)
                    variants[f"{name} {k}"] = partial(projector.rows, delta_TO, a_TI, bounds)
            seconds = interleaved(variants, clock=_gpu_clock)
            size = 2 * length * segments * (outputs + inputs)
            for k in SIDES:
                for name, ratio in flop_ratio(outputs, inputs, length, k).items():
                    taken = seconds[f"{name} {k}"]
                    floor = max(ratio * unit / H100_FLOPS, size / H100_BYTES)
                    row = {"model": model, "variant": name, "shape": [outputs, inputs], "k": k, "seconds": taken}
                    row |= {"tflops": ratio * unit / taken / 1e12, "gbs": size / taken / 1e9, "of_floor": floor / taken}
                    results.append(row)
                    layer = f"{outputs} x {inputs}"
                    speeds = f"{taken * 1e3:7.3f} {row['tflops']:9.1f} {row['gbs']:7.0f} {row['of_floor']:12.0%}"
                    print(f"{model:5} {name:9} {layer:15} {k:3} {speeds}", flush=True)
    return results


def bench_compile(targets: Sequence[str]) -> list[dict]:
    """Prints and returns what each shipped configuration needs.

    Raises:
        UserError: a target is unknown; nothing is compiled.
        RuntimeError: a configuration is unfit.
    """
    from headwater.kernels import compile_check

    unknown = [target for target in targets if target not in compile_check.TARGETS]
    if unknown:
        raise UserError("--compile is not one", got=", ".join(unknown), expected=", ".join(compile_check.TARGETS))
    print(compile_check.HEADER)
    reports = []
    for report in compile_check.compile_all(list(targets)):
        reports.append(report)
        print(compile_check.line(report), flush=True)
    unfit = [f"{report.target} {report.name}" for report in reports if report.faults]
    if unfit:
        raise RuntimeError(f"{len(unfit)} shipped configurations are unfit: {', '.join(unfit)}")
    fields = ("target", "name", "registers", "stack", "spills", "shared", "programs", "matrix_instructions")
    return [{field: getattr(report, field) for field in fields} for report in reports]


def main(compile: Sequence[str] = ()) -> dict[str, Any]:
    """What the projection kernels cost on this machine: its CPU, and its GPU where it has one.

    --compile: GPU architectures, for example sm_80,sm_90,gfx942: what every shipped Triton configuration needs of a
    multiprocessor of theirs, without a GPU, instead.
    """
    import torch

    found: dict[str, Any] = {"torch": torch.__version__}
    if compile:
        return {**found, "compile": bench_compile(compile)}
    found["cpu"] = bench_cpu()
    if torch.cuda.is_available():
        found["gpu"] = bench_gpu()
    return found
