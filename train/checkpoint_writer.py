"""Writing checkpoints: every rank its share of the tensors, one directory, renamed when whole.

Every rank writes the tensors it is dealt under a `.part` directory; rank 0 waits for all, writes checkpoint.json and
renames. What a reader sees is therefore whole.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headwater.train import parallel
from headwater.train.artifacts import fingerprint, fingerprint_file, read_json, remove, sync, write_json
from headwater.train.checkpoint import FORMAT, KINDS, steps_in
from headwater.train.compared import note_compared
from headwater.train.engine import Engine
from headwater.train.model import parameter_parts
from headwater.train.parallel import World
from headwater.train.tensor_files import save_tensors

_FILE_BYTES = 1 << 30


class CheckpointWriter:
    """Saves an engine's state; in the background if asked.

    Args:
        directory: a run's checkpoint directory, on a file system that all ranks share.
        asynchronous: return as soon as the tensors are copied; files are written while training goes on.
    """

    def __init__(self, directory: Path, world: World, *, asynchronous: bool = False) -> None:
        self.directory, self.world, self.asynchronous = directory, world, asynchronous
        self._writing: threading.Thread | None = None
        self._finishing: threading.Thread | None = None
        self._errors: dict[str, BaseException | None] = {}
        self._abandoned = threading.Event()

    @property
    def has_failed(self) -> bool:
        """Whether something that this rank writes in the background has failed; `wait` will raise it."""
        return any(error is not None for error in self._errors.values())

    def save(
        self,
        engine: Engine,
        step: int,
        meta: dict[str, Any],
        extra: Callable[[Path], None] | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        """Writes `step-NNNNNNNN/`.

        Args:
            meta: goes into checkpoint.json.
            extra: may write files into the directory that it is given.
            done: called on rank 0 when the checkpoint is in its place.
        """
        self.wait()
        final = self.directory / f"step-{step:08d}"
        part = final.with_name(final.name + ".part")

        def begin() -> None:
            remove(part)
            (part / "extra").mkdir(parents=True)

        parallel.on_main(self.world, begin)
        tensors = self._collect(engine)
        # Each step is agreed upon: a rank that fails ends the others too, which would wait for it.
        parallel.agree(self.world, parallel.attempt(lambda: extra(part / "extra")) if extra is not None else None)
        whole = partial(self._finish, part, final, {"format": FORMAT, "step": step, **meta}, done)
        if self.asynchronous:
            self._writing = self._start("write", partial(self._write, part, tensors))
            self._finishing = self._start("finish", whole) if self.world.is_main else None
        else:
            parallel.agree(self.world, parallel.attempt(partial(self._write, part, tensors)))
            parallel.on_main(self.world, whole)

    def wait(self) -> None:
        """Returns when no write is under way; raises, on all ranks, what a background write of one of them raised."""
        if self._writing is None:
            return
        self._writing.join()
        self._writing = None
        try:
            parallel.agree(self.world, self._errors.pop("write", None))
        except BaseException:
            self.abandon()  # rank 0 waits for what will not come
            raise
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        parallel.agree(self.world, self._errors.pop("finish", None))

    def abandon(self) -> None:
        """Ends a background write without agreeing with the other ranks, which may be gone: training has broken off."""
        self._abandoned.set()
        for thread in (self._writing, self._finishing):
            if thread is not None:
                thread.join()
        self._writing = self._finishing = None

    def _start(self, what: str, action: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            self._errors[what] = parallel.attempt(action)  # handed over to `wait`

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def _collect(self, engine: Engine) -> list[tuple[str, str, Tensor]]:
        """This rank's share of (kind, name, whole tensor), on the CPU."""
        size = parallel.tensor_size()
        group = parallel.tensor_group()
        collected = []
        for number, part in enumerate(parameter_parts(engine.model)):
            state = engine.state(part.parameter)
            if number % self.world.data != self.world.data_rank:
                continue
            for kind in KINDS:
                value = state.get(kind)
                value = torch.zeros_like(state["weight"]) if value is None else value
                parts = [value]
                if part.dim is not None and size > 1:
                    parts = [torch.empty_like(value) for _ in range(size)]
                    dist.all_gather(parts, value.contiguous(), group=group)
                if parallel.tensor_rank() == 0:
                    collected.append((kind, part.name, part.join(parts).to("cpu", torch.float32, copy=True)))
        return collected

    def _write(self, part: Path, tensors: list[tuple[str, str, Tensor]]) -> None:
        place = f"p{parallel.pipeline_rank()}-d{self.world.data_rank}"
        entries: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        hashes = {}
        for kind in KINDS:
            own = [(name, tensor) for other, name, tensor in tensors if other == kind]
            for number, chunk in enumerate(_chunks(own)):
                file = f"{kind}-{place}-{number}.safetensors"
                save_tensors(part / file, dict(chunk))
                hashes[file] = fingerprint_file(part / file)
                for name, tensor in chunk:
                    entries[kind][name] = {"file": file, "shape": list(tensor.shape)}
                    if kind == "weight":
                        entries[kind][name]["xxh3"] = fingerprint(tensor.numpy().tobytes())
        write_json(part / f"rank-{self.world.rank:05d}.json", {"files": hashes, "tensors": entries})

    def _finish(self, part: Path, final: Path, meta: dict[str, Any], done: Callable[[], None] | None) -> None:
        merged: dict[str, Any] = {"files": {}, "tensors": {kind: {} for kind in KINDS}}
        for rank in range(self.world.size):
            path = part / f"rank-{rank:05d}.json"
            while not path.exists():
                if self._abandoned.wait(0.01):
                    raise RuntimeError(f"rank {rank} has not written its part of {part}")
            note = json.loads(path.read_text())
            merged["files"].update(note["files"])
            for kind in KINDS:
                merged["tensors"][kind].update(note["tensors"][kind])
            remove(path)
        shared = self._hashes_of_last()
        for path in sorted((part / "extra").rglob("*")):
            if path.is_file():
                known = shared.get(identity(path)) if path.stat().st_nlink > 1 else None
                merged["files"][str(path.relative_to(part))] = known or fingerprint_file(path)
        weights = merged["tensors"]["weight"]
        meta["fingerprint"] = fingerprint({name: weights[name]["xxh3"] for name in weights})
        write_json(part / "checkpoint.json", {**meta, **merged})
        sync(part)
        remove(final)
        os.replace(part, final)
        note_compared(final, merged["files"])
        if done is not None:
            done()

    def _hashes_of_last(self) -> dict[tuple[int, ...], str]:
        """Hashes of the newest checkpoint's files, which callbacks may have linked into the one that is written."""
        for step in steps_in(self.directory)[-1:]:
            newest = self.directory / f"step-{step:08d}"
            files = read_json(newest / "checkpoint.json")["files"]
            return {identity(newest / name): digest for name, digest in files.items() if (newest / name).exists()}
        return {}


def identity(path: Path) -> tuple[int, ...]:
    """What two names of one file have in common, and changes with its bytes."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def save_weights(directory: Path, named: Iterable[tuple[str, Tensor]], meta: dict[str, Any]) -> None:
    """Makes a directory into a checkpoint without moments, from whole fp32 tensors under canonical names."""
    entries, hashes = {}, {}
    for number, chunk in enumerate(_chunks(named)):
        file = f"weight-{number}.safetensors"
        save_tensors(directory / file, dict(chunk))
        hashes[file] = fingerprint_file(directory / file)
        for name, tensor in chunk:
            digest = fingerprint(tensor.contiguous().numpy().tobytes())
            entries[name] = {"file": file, "shape": list(tensor.shape), "xxh3": digest}
    whole = fingerprint({name: entries[name]["xxh3"] for name in entries})
    rest = {"fingerprint": whole, "files": hashes, "tensors": {"weight": entries}}
    write_json(directory / "checkpoint.json", {"format": FORMAT, **meta, **rest})


def prune(directory: Path, keep: int, fixed: Iterable[int]) -> None:
    """Deletes all but the newest `keep` checkpoints and the fixed ones; keep = 0 deletes none."""
    if keep < 1:
        return
    protected = set(fixed)
    for step in [step for step in steps_in(directory) if step not in protected][:-keep]:
        remove(directory / f"step-{step:08d}")


def _chunks(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    chunk: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if chunk and size + tensor.nbytes > _FILE_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append((name, tensor))
        size += tensor.nbytes
    if chunk:
        yield chunk
