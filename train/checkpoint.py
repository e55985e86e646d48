"""Checkpoints that do not know the parallel layout: whole tensors under canonical names, in safetensors.

    step-00000600/
        checkpoint.json                     step, settings, every tensor's file, shape and hash
        weight-p0-d0-0.safetensors          fp32 weights
        exp_avg-*.safetensors, exp_avg_sq-* Adam's moments
        extra/                              what callbacks keep

Every rank writes the tensors it is dealt under a `.part` directory; rank 0 waits for all, writes checkpoint.json and
renames. What a reader sees is therefore whole. The fingerprint covers the weights alone and is the same for any layout.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headwater.configs.errors import CorruptError, MismatchError, MissingError
from headwater.train import parallel
from headwater.train.artifacts import fingerprint, fingerprint_file, read_json, remove, sync, write_json
from headwater.train.engine import MOMENTS, Engine
from headwater.train.model import EMBEDDING, PackedGPT, Shard, shards, tied_copy
from headwater.train.parallel import World

FORMAT = 1
KINDS = ("weight", *MOMENTS)
_FILE_BYTES = 1 << 30
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    @property
    def fingerprint(self) -> str:
        """Of the weights; the same whatever the layout that saved them."""
        return str(self.meta["fingerprint"])

    @property
    def names(self) -> list[str]:
        return sorted(self.meta["tensors"]["weight"])

    def tensor(self, kind: str, name: str) -> Tensor:
        """A whole tensor, float32. `kind` is weight, exp_avg or exp_avg_sq."""
        with self._open(kind, name) as file:
            return file.get_tensor(name)

    def part(self, kind: str, shard: Shard, rank: int, size: int) -> Tensor:
        """One tensor-parallel rank's part, read without the rest."""
        with self._open(kind, shard.name) as file:
            view = file.get_slice(shard.name)
            shape = tuple(view.get_shape())
            if shape != shard.shape:
                raise MismatchError(
                    f"{self.path}: {kind} {shard.name} has another shape",
                    got=shape,
                    expected=shard.shape,
                    fix="use the model settings that the checkpoint was trained with",
                )
            if shard.dim is None or size == 1:
                return file.get_tensor(shard.name)
            rows = shard.shape[shard.dim]
            if shard.gated:
                half, width = rows // 2, rows // 2 // size
                starts = (rank * width, half + rank * width)
                return torch.cat([view[start : start + width] for start in starts])
            width = rows // size
            part = slice(rank * width, (rank + 1) * width)
            return view[part] if shard.dim == 0 else view[:, part]

    def verify(self) -> None:
        """Compares every file's hash with the one noted when it was written.

        Raises:
            CorruptError: naming the first file that differs.
        """
        for name, expected in self.meta["files"].items():
            path = self.path / name
            got = fingerprint_file(path) if path.exists() else "no such file"
            if got != expected:
                raise CorruptError(
                    f"checkpoint file {path} is damaged",
                    got=got,
                    expected=expected,
                    fix="delete this checkpoint; the one before it is taken instead",
                )

    def _entry(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return self.meta["tensors"][kind][name]
        except KeyError:
            raise MismatchError(
                f"{self.path} holds no {kind} of {name}",
                expected="a parameter of the model the settings describe",
                fix="use the model settings that the checkpoint was trained with",
            ) from None

    def _open(self, kind: str, name: str) -> Any:
        """The open file that holds a tensor."""
        path = self.path / self._entry(kind, name)["file"]
        try:
            file = safe_open(path, framework="pt")
            file.get_slice(name)
        except (OSError, SafetensorError) as error:
            raise CorruptError(
                f"checkpoint file {path} cannot be read",
                got=error,
                expected=f"a safetensors file with {name}",
                fix="use another checkpoint",
            ) from None
        return file


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens one checkpoint directory.

    Raises:
        MissingError, CorruptError: when it is not there, or not whole.
    """
    path = Path(path)
    if not (path / "checkpoint.json").exists():
        steps = ", ".join(map(str, steps_in(path.parent)[-5:]))
        raise MissingError(
            f"{path} is not a checkpoint",
            got=f"steps {steps}" if steps else None,
            expected="a directory with checkpoint.json",
            fix="choose one of these steps" if steps else "run `headwater pretrain` first",
        )
    meta = read_json(path / "checkpoint.json")
    if isinstance(meta, dict) and meta.get("format", FORMAT) != FORMAT:
        fix = "read it with the version of Headwater that wrote it"
        raise MismatchError(f"{path} has another format", got=meta["format"], expected=FORMAT, fix=fix)
    try:
        lacking = [each for each in ("format", "step", "fingerprint") if each not in meta]
        whole = not lacking and isinstance(meta["files"], dict) and isinstance(meta["tensors"]["weight"], dict)
    except (KeyError, TypeError) as error:
        whole, lacking = False, [str(error)]
    if not whole:
        raise CorruptError(
            f"{path / 'checkpoint.json'} does not describe a checkpoint",
            got=f"nothing under {', '.join(lacking)}" if lacking else "something else under files or tensors",
            expected="format, step, fingerprint, files and tensors",
            fix="restore it, or delete this checkpoint; the one before it is taken instead",
        )
    return Checkpoint(path, meta)


def steps_in(directory: Path) -> list[int]:
    """Steps of the whole checkpoints in a run's checkpoint directory, in order."""
    return sorted(_step_of(name) for name in _names_in(directory) if (directory / name / "checkpoint.json").exists())


def _names_in(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir() if _NAME.fullmatch(entry.name)] if directory.is_dir() else []


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def newest(directory: Path, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest checkpoint that is whole, None if there are no checkpoints; damaged ones are passed over and named.

    Raises:
        CorruptError: there are checkpoints, and none of them is whole.
    """
    names = sorted(_names_in(directory), key=_step_of)
    for name in reversed(names):
        path = directory / name
        try:
            checkpoint = open_checkpoint(path)
            checkpoint.verify()
        except (CorruptError, MissingError) as error:
            if name == names[0]:
                raise CorruptError(
                    f"no checkpoint in {directory} is whole: {error.what}",
                    got=error.got,
                    expected=error.expected,
                    fix=f"restore one, or remove {directory} to train from the beginning",
                ) from None
            say(f"passing over {path}: {error}")
            continue
        return checkpoint
    return None


def load_weights(model: PackedGPT, checkpoint: Checkpoint) -> None:
    """Copies this rank's part of the weights into the model, before an engine takes it over."""
    rank, size = parallel.tensor_rank(), parallel.tensor_size()
    targets = list(shards(model))
    copy = tied_copy(model)
    if copy is not None:
        targets.append(Shard(EMBEDDING, copy, (copy.shape[0] * size, copy.shape[1]), 0, False))
    with torch.no_grad():
        for shard in targets:
            shard.parameter.copy_(checkpoint.part("weight", shard, rank, size))


def load_engine(engine: Engine, checkpoint: Checkpoint) -> None:
    """Puts weights, moments and the count of updates into an engine whose moments exist."""
    rank, size = parallel.tensor_rank(), parallel.tensor_size()
    targets = list(shards(engine.model))
    copy = tied_copy(engine.model)
    if copy is not None:
        targets.append(Shard(EMBEDDING, copy, (copy.shape[0] * size, copy.shape[1]), 0, False))
    for shard in targets:
        state = {kind: checkpoint.part(kind, shard, rank, size).to(engine.world.device) for kind in KINDS}
        engine.load_state(shard.parameter, state)
    engine.set_steps(checkpoint.meta["updates"])


class CheckpointWriter:
    """Saves an engine's state; in the background if asked.

    Args:
        directory: a run's checkpoint directory, on a file system that all ranks share.
        asynchronous: return as soon as the tensors are copied; files are written while training goes on.
    """

    def __init__(self, directory: Path, world: World, *, asynchronous: bool = False) -> None:
        self.directory, self.world, self.asynchronous = directory, world, asynchronous
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandoned = threading.Event()

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
        if self.world.is_main:
            remove(part)
            (part / "extra").mkdir(parents=True)
        dist.barrier()
        tensors = self._collect(engine)
        if extra is not None:
            extra(part / "extra")
        meta = {"format": FORMAT, "step": step, **meta}
        if self.asynchronous:
            self._thread = threading.Thread(target=self._guarded, args=(part, final, tensors, meta, done))
            self._thread.start()
        else:
            self._write(part, tensors)
            dist.barrier()  # a rank that is gone ends the waiting with an error
            if self.world.is_main:
                self._finish(part, final, meta, done)
            dist.barrier()

    def wait(self) -> None:
        """Returns when no write is under way; raises what a background write raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            dist.barrier()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def abandon(self) -> None:
        """Ends a background write without agreeing with the other ranks, which may be gone: training has broken off."""
        self._abandoned.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _guarded(
        self,
        part: Path,
        final: Path,
        tensors: list[tuple[str, str, Tensor]],
        meta: dict[str, Any],
        done: Callable[[], None] | None,
    ) -> None:
        try:
            self._write(part, tensors)
            if self.world.is_main:
                self._finish(part, final, meta, done)
        except BaseException as error:  # handed over to `wait`
            self._error = error

    def _collect(self, engine: Engine) -> list[tuple[str, str, Tensor]]:
        """This rank's share of (kind, name, whole tensor), on the CPU."""
        size = parallel.tensor_size()
        group = parallel.tensor_group()
        collected = []
        for number, shard in enumerate(shards(engine.model)):
            state = engine.state(shard.parameter)
            if number % self.world.data != self.world.data_rank:
                continue
            for kind in KINDS:
                value = state.get(kind)
                value = torch.zeros_like(state["weight"]) if value is None else value
                parts = [value]
                if shard.dim is not None and size > 1:
                    parts = [torch.empty_like(value) for _ in range(size)]
                    dist.all_gather(parts, value.contiguous(), group=group)
                if parallel.tensor_rank() == 0:
                    collected.append((kind, shard.name, shard.join(parts).to("cpu", torch.float32, copy=True)))
        return collected

    def _write(self, part: Path, tensors: list[tuple[str, str, Tensor]]) -> None:
        place = f"p{parallel.pipeline_rank()}-d{self.world.data_rank}"
        entries: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        hashes = {}
        for kind in KINDS:
            own = [(name, tensor) for other, name, tensor in tensors if other == kind]
            for number, chunk in enumerate(_chunks(own)):
                file = f"{kind}-{place}-{number}.safetensors"
                save_file({name: tensor.contiguous() for name, tensor in chunk}, part / file)
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
        for path in sorted((part / "extra").rglob("*")):
            if path.is_file():
                merged["files"][str(path.relative_to(part))] = fingerprint_file(path)
        weights = merged["tensors"]["weight"]
        meta["fingerprint"] = fingerprint({name: weights[name]["xxh3"] for name in weights})
        write_json(part / "checkpoint.json", {**meta, **merged})
        sync(part)
        remove(final)
        os.replace(part, final)
        if done is not None:
            done()


def save_weights(directory: Path, named: Iterable[tuple[str, Tensor]], meta: dict[str, Any]) -> None:
    """Makes a directory into a checkpoint without moments, from whole fp32 tensors under canonical names."""
    entries, hashes = {}, {}
    for number, chunk in enumerate(_chunks(named)):
        file = f"weight-{number}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in chunk}, directory / file)
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
