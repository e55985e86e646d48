"""Compiles every shipped kernel configuration for GPUs that are not there, and reads what the compilers made of it.

    python -m headwater.kernels.compile_check sm_80,sm_90,gfx942

Registers, stack and spills come from the machine code itself: an over-large shared memory or a spill does not fail a
compile, it only makes the kernel slow or impossible to start.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import triton_factored, triton_full
from .gpu import has_descriptors
from .triton_common import PARTS


@dataclass(frozen=True, slots=True)
class Target:
    """What an architecture has.

    Attributes:
        shared: most bytes of shared memory that one program can have.
        shared_unit: of a multiprocessor (a compute unit on AMD).
        threads: of a multiprocessor.
    """

    triton: GPUTarget
    shared: int
    shared_unit: int
    threads: int = 2048


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 166_912, 167_936),
    "sm_86": Target(GPUTarget("cuda", 86, 32), 101_376, 102_400, 1536),
    "sm_89": Target(GPUTarget("cuda", 89, 32), 101_376, 102_400, 1536),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 232_448, 233_472),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 232_448, 233_472),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 101_376, 102_400, 1536),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 65_536, 65_536),
}
REGISTERS_PER_UNIT = 65_536
DEFAULT_TARGETS = tuple(TARGETS)
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel with its compile-time arguments."""

    name: str
    target: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    aligned: tuple[str, ...]
    """Arguments known to be multiples of 16; without that, loads are not vectorised."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a compiled kernel needs of a multiprocessor (a compute unit on AMD)."""

    name: str
    target: str
    registers: int
    stack: int
    spills: int
    """Local loads and stores in the machine code (vector registers spilled on AMD)."""
    shared: int
    matrix_instructions: dict[str, int]
    programs: int
    """How many fit on one multiprocessor, by registers, shared memory and warps."""

    @property
    def faults(self) -> list[str]:
        """What makes the configuration unfit to be shipped; empty when it is fit."""
        faults = []
        if self.stack or self.spills:
            faults.append(f"spills ({self.stack} B of stack, {self.spills} local accesses)")
        if self.shared > TARGETS[self.target].shared:
            faults.append(f"needs {self.shared} B of shared memory, {TARGETS[self.target].shared} B are there")
        if not any(self.matrix_instructions.values()):
            faults.append("uses no tensor cores")
        return faults


def _full_case(target: str, dtype: torch.dtype, side: int, config: triton_full.FullConfig, precision: str) -> Case:
    inputs = "*" + TYPES[dtype]
    pointers = {"delta_ptr": inputs, "a_ptr": inputs, "bounds_ptr": "*i32", "left_ptr": "*bf16"}
    pointers |= {"w_IO_ptr": "*bf16" if dtype == torch.bfloat16 else "*fp32", "half_ptr": "*fp32"}
    numbers = ("tokens", "delta_stride", "a_stride", "outputs", "inputs", "segments", "group", "outputs_per_program")
    constants: dict[str, Any] = {
        "kO": side,
        "INPUTS": config.inputs,
        "OUTPUTS": config.outputs,
        "TOKENS": config.tokens,
    }
    constants |= {"DESCRIPTORS": config.descriptors, "PRECISION": precision, "PARTS": PARTS[dtype]}
    aligned = (*pointers, "delta_stride", "a_stride", "outputs", "inputs", "outputs_per_program")
    loads = "descriptors" if config.descriptors else "pointers"
    name = f"full {TYPES[dtype]} k={side} {loads} {config.inputs}x{config.outputs}x{config.tokens}"
    types = pointers | dict.fromkeys(numbers, "i32")
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return Case(name, target, triton_full.full_kernel, types, constants, options, aligned)


def _case(name: str, target: str, kernel: Any, types: dict[str, str], settings: dict[str, Any]) -> Case:
    options = {key: value for key, value in settings.items() if key.startswith("num_")}
    constants = {key: value for key, value in settings.items() if key not in options}
    aligned = tuple(
        key for key, kind in types.items() if key != "scale" and key not in ("splits", "segments", "tokens")
    )
    return Case(name, target, kernel, types, constants, options, aligned)


def shipped(target: str) -> Iterator[Case]:
    """Every configuration that `dispatch` can choose on an architecture."""
    precision = "ieee" if TARGETS[target].triton.backend == "hip" else "tf32x3"
    for dtype, name in TYPES.items():
        for side in (16, 32, 64):
            for descriptors in (False, True) if has_descriptors(target) else (False,):
                config = triton_full.choose_config(target, dtype, side, descriptors)
                if config.descriptors == descriptors:
                    yield _full_case(target, dtype, side, config, precision)
        thin = triton_factored.choose_thin(target, dtype)
        types = {"x_ptr": f"*{name}", "factor_ptr": f"*{name}", "result_ptr": "*fp32", "tokens": "i32"}
        types |= {"x_stride": "i32", "features": "i32", "columns": "i32"}
        yield _case(f"thin {name}", target, triton_factored.thin_kernel, types, {**thin, "PRECISION": precision})
    types = {"y_ptr": "*fp32", "z_ptr": "*fp32", "bounds_ptr": "*i32", "row_ptr": "*fp32", "scale": "fp32"}
    types |= dict.fromkeys(("tokens", "y_stride", "z_stride", "kO", "kI"), "i32")
    settings: dict[str, Any] = {**triton_factored.SEGMENT, "PRECISION": precision}
    yield _case("segment", target, triton_factored.segment_kernel, types, settings)
    types = {"half_ptr": "*fp32", "right_ptr": "*bf16", "row_ptr": "*fp32"}
    types |= dict.fromkeys(("splits", "segments", "inputs"), "i32")
    for side in (16, 32, 64):
        settings = {**triton_full.FINISH, "kO": side, "kI": side}
        yield _case(f"finish k={side}", target, triton_full.finish_kernel, types, settings)


def negative_control(target: str) -> Case:
    """A configuration that must be found unfit: the main kernel's tiling with float32 in full precision."""
    return _full_case(target, torch.float32, 64, triton_full.FullConfig(), "ieee")


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _nvidia(case: Case, compiled: Any) -> Report:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, f"no resource usage in the output of cuobjdump: {usage}"
    registers, stack = map(int, found.groups())
    matrix = {"wgmma": compiled.asm["ptx"].count("wgmma.mma_async"), "mma": compiled.asm["ptx"].count("mma.sync")}
    matrix["tcgen05"] = len(re.findall(r"tcgen05\.mma", compiled.asm["ptx"]))
    threads = 32 * case.options["num_warps"]
    spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    # Registers are handed out per warp in steps of 8 a thread; each program takes 1 KiB of shared memory on top.
    programs = min(
        REGISTERS_PER_UNIT // (-(-registers // 8) * 8 * threads),
        TARGETS[case.target].shared_unit // (compiled.metadata.shared + 1024),
        TARGETS[case.target].threads // threads,
    )
    return Report(case.name, case.target, registers, stack, spills, compiled.metadata.shared, matrix, programs)


def _amd(case: Case, compiled: Any) -> Report:
    code = compiled.asm["amdgcn"]

    def entry(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", code)
        return int(found.group(1)) if found else 0

    registers = entry("vgpr_count")
    waves_per_simd = min(8, 512 // (-(-max(registers, 1) // 8) * 8))
    programs = 4 * waves_per_simd // case.options["num_warps"]
    if compiled.metadata.shared:
        programs = min(programs, TARGETS[case.target].shared_unit // compiled.metadata.shared)
    spills = entry("vgpr_spill_count")
    matrix = {"mfma": code.count("v_mfma")}
    return Report(
        case.name,
        case.target,
        registers,
        entry("private_segment_fixed_size"),
        spills,
        compiled.metadata.shared,
        matrix,
        programs,
    )


def compile_case(case: Case) -> Report:
    """Compiles one configuration; needs no GPU."""
    names = list(case.types)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    signature = case.types | dict.fromkeys(case.constants, "constexpr")
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    options: dict[str, Any] = {**case.options, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=TARGETS[case.target].triton, options=options)
    return _amd(case, compiled) if TARGETS[case.target].triton.backend == "hip" else _nvidia(case, compiled)


def compile_all(targets: list[str]) -> Iterator[Report]:
    """One report per shipped configuration.

    Raises:
        ValueError: a target is unknown.
    """
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise ValueError(f"unknown compile targets {unknown}; known are {list(TARGETS)}")
    for target in targets:
        for case in shipped(target):
            yield compile_case(case)


HEADER = f"{'target':7} {'kernel':44} regs stack spills  shared programs  matrix instructions"


def line(report: Report) -> str:
    """One line of the table under `HEADER`."""
    counts = ", ".join(f"{count} {name}" for name, count in report.matrix_instructions.items() if count) or "none"
    numbers = f"{report.registers:4} {report.stack:5} {report.spills:6} {report.shared:7} {report.programs:8}"
    return f"{report.target:7} {report.name:44} {numbers}  {counts}{''.join('  UNFIT: ' + x for x in report.faults)}"


if __name__ == "__main__":
    print(HEADER)
    for item in compile_all(sys.argv[1].split(",") if len(sys.argv) > 1 else list(DEFAULT_TARGETS)):
        print(line(item), flush=True)
