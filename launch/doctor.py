"""`headwater doctor`: what this machine and this environment are, whether they will do, and a self-test.

    headwater doctor                  # a table; its output belongs into a bug report
    headwater doctor --json

Nothing is written but a temporary file. The exit status is 1 if something is broken, else 0.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

GIB = 2**30
PACKAGES = ("torch", "megatron-core", "deepspeed", "mosaicml-streaming", "transformers", "triton", "llvmlite", "numpy")
OPTIONAL = ("transformer-engine", "faiss-cpu", "ray")
LEAST_SHARED_GIB, LEAST_DISK_GIB, LEAST_FILES = 0.25, 2.0, 1024
ODD = (37, 29, 5)
"""Rows, columns and projected dimensions of the self-test's layer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `ok`, `note` (works, and is worth knowing) or `broken`.
        advice: what to do, unless it is ok.
    """

    name: str
    found: str
    state: str = "ok"
    advice: str = ""


def examine(directory: Path = Path()) -> list[Finding]:
    """Looks at everything; `directory` is where runs would be written."""
    findings = []
    for look in (versions, processor, gpus, compiler, shared_memory, open_files, disk(directory), network, fonts, test):
        try:
            findings += list(look())
        except Exception as error:  # whatever breaks is what this command is there to tell
            name = getattr(look, "__name__", "check").replace("_", " ")
            findings.append(Finding(name, f"{type(error).__name__}: {error}", "broken", "report this with the output"))
    return findings


def versions() -> Iterator[Finding]:
    from headwater.train.artifacts import git_commit

    commit = git_commit()
    yield Finding("headwater", metadata.version("headwater") + (f" ({commit})" if commit else ""))
    fits = sys.version_info[:2] in ((3, 11), (3, 12))
    yield Finding("python", platform.python_version(), *(() if fits else ("broken", "Python 3.11 or 3.12 is needed")))
    yield Finding("system", platform.platform())
    for name in PACKAGES:
        found = _version(name)
        yield Finding(name, found or "missing", *(() if found else ("broken", "run `make setup` again")))
    there = [f"{name} {_version(name)}" for name in OPTIONAL if _version(name)]
    yield Finding("optional", ", ".join(there) or "none")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> Iterator[Finding]:
    lines = _lines("/proc/cpuinfo")
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    best = next((each for each in ("avx512f", "avx2") if each in flags), "no AVX")
    yield Finding("processor", f"{model}, {len(os.sched_getaffinity(0))} cores for this process, {best}")
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo")}
    free = sizes.get("MemAvailable", 0) / GIB
    state = () if free >= 2 else ("note", "the demo takes about 2 GiB")
    yield Finding("memory", f"{free:.1f} GiB free of {sizes.get('MemTotal', 0) / GIB:.1f}", *state)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        yield Finding("GPU", f"none; {built}", "note", "everything runs on the CPU")
        return
    for place in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(place)
        yield Finding(
            f"GPU {place}",
            f"{properties.name}, {properties.total_memory / GIB:.1f} GiB, compute capability "
            f"{properties.major}.{properties.minor}, CUDA {torch.version.cuda}",
        )
    yield Finding("NCCL", str(torch.distributed.is_nccl_available()).lower())


def compiler() -> Iterator[Finding]:
    found = next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)
    advice = ("note", "a GPU's Triton kernels need a C compiler; the CPU's do not")
    yield Finding("C compiler", found or "none", *(() if found else advice))


def shared_memory() -> Iterator[Finding]:
    if not Path("/dev/shm").is_dir():
        yield Finding("/dev/shm", "missing", "broken", "processes of a stream share memory there; mount it")
        return
    usage = shutil.disk_usage("/dev/shm")
    short = usage.free < LEAST_SHARED_GIB * GIB
    advice = ("note", "give a container more: docker run --shm-size=8g") if short else ()
    yield Finding("/dev/shm", f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}", *advice)


def open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = ("note", "raise it for many shards: ulimit -n 65536") if soft < LEAST_FILES else ()
    yield Finding("open files", f"{soft:,} (at most {hard:,})", *advice)


def disk(directory: Path) -> Callable[[], Iterator[Finding]]:
    """The check of the disk that a directory is on."""

    def free_disk() -> Iterator[Finding]:
        free = shutil.disk_usage(directory).free / GIB
        where = f"{directory.resolve()}: {free:.1f} GiB free"
        writable = os.access(directory, os.W_OK)
        if not writable:
            yield Finding("disk", f"{where}, not writable", "note", "choose an out= elsewhere")
            return
        yield Finding("disk", where, *(() if free >= LEAST_DISK_GIB else ("note", "the demo takes about 1 GiB")))

    return free_disk


def network() -> Iterator[Finding]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        yield Finding("network", f"port {port} can be opened; {name} has no address", "note", "add it to /etc/hosts")
        return
    yield Finding("network", f"port {port} can be opened; {name} is {address}")


def fonts() -> Iterator[Finding]:
    from matplotlib import font_manager

    path = font_manager.findfont("DejaVu Sans", fallback_to_default=False)
    yield Finding("fonts", f"DejaVu Sans ({path})")


def test() -> Iterator[Finding]:
    """Ten seconds at most: kernels against float64, a process group, a file."""
    began = time.perf_counter()
    tests: list[tuple[str, Callable[[], str]]] = [
        ("self-test: kernels", _kernels),
        ("self-test: process group", _process_group),
        ("self-test: files", _files),
    ]
    for name, run in tests:
        yield Finding(name, run())
    yield Finding("self-test", f"{time.perf_counter() - began:.1f} s")


def _kernels() -> str:
    """The projection of this machine's kernel against the float64 reference."""
    import torch

    from headwater.kernels import Factored, project, reference, signs

    outputs, inputs, k = ODD
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = torch.Generator().manual_seed(0)
    delta_TO, a_TI = torch.randn(23, outputs, generator=made), torch.randn(23, inputs, generator=made)
    cu_seqlens = torch.tensor([0, 9, 23], dtype=torch.int32)
    left_Ok, right_Ik = signs(seed=0, key="l", n=outputs, k=k), signs(seed=0, key="r", n=inputs, k=k)
    correction = Factored(torch.rand(outputs, generator=made), torch.rand(inputs, generator=made))
    wanted = reference.project(delta_TO, a_TI, cu_seqlens, left_Ok, right_Ik, correction)
    moved = Factored(correction.r_O.to(device), correction.c_I.to(device))
    delta_TO, a_TI, cu_seqlens = delta_TO.to(device), a_TI.to(device), cu_seqlens.to(device)
    found = project(delta_TO, a_TI, cu_seqlens, left_Ok.to(device), right_Ik.to(device), moved).cpu()
    error = float((found - wanted).norm() / wanted.norm())
    if not error < 1e-3:
        raise ArithmeticError(f"the projection is off by {error:.1e}")
    return f"relative error {error:.0e} on the {device.type}"


def _process_group() -> str:
    import torch
    from torch import distributed

    with tempfile.TemporaryDirectory() as place:
        distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=0, world_size=1)
        try:
            total = torch.ones(3)
            distributed.all_reduce(total)
        finally:
            distributed.destroy_process_group()
    return f"gloo adds up {total.tolist()}"


def _files() -> str:
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as place:
        written = {"a": torch.arange(1001)}
        save_file(written, f"{place}/a.safetensors")
        if not torch.equal(load_file(f"{place}/a.safetensors")["a"], written["a"]):
            raise OSError("what was written is not what is read")
    return f"written and read in {tempfile.gettempdir()}"


def run_doctor(as_json: bool = False) -> int:
    """Prints what was found; returns the exit status."""
    findings = examine()
    broken = sum(each.state == "broken" for each in findings)
    if as_json:
        import json

        print(json.dumps([asdict(each) for each in findings], indent=2))
        return int(bool(broken))
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    styles: dict[str, Any] = {"ok": "green", "note": "yellow", "broken": "bold red"}
    width = max(len(each.name) for each in findings)
    for each in findings:
        line = Text.assemble((f"{each.state:<7}", styles[each.state]), f"{each.name:<{width}}  {each.found}")
        console.print(line.append(f"  ({each.advice})" if each.advice else "", style="dim"))
    console.print("this will do" if not broken else f"{broken} broken: what they say above comes first")
    return int(bool(broken))
