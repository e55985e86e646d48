"""Checkpoints that do not know the parallel layout: whole tensors under canonical names, in safetensors.

    step-00000600/
        checkpoint.json                     step, settings, every tensor's file, shape and hash
        weight-p0-d0-0.safetensors          fp32 weights
        exp_avg-*.safetensors, exp_avg_sq-* Adam's moments
        extra/                              what callbacks keep

Reading is here: opening, verifying, choosing the newest whole one; loading.py fills a model or an engine of any layout.
The fingerprint covers the weights alone and is the same for any layout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from headwater.configs.errors import CorruptError, MismatchError, MissingError
from headwater.train.artifacts import fingerprint_file, read_json
from headwater.train.compared import are_as_compared
from headwater.train.engine import MOMENTS
from headwater.train.settings import ModelSettings, OptimizerSettings

FORMAT = 1
KINDS = ("weight", *MOMENTS)
READERS = 4
"""Files of a checkpoint that are compared at a time."""
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

    def file(self, kind: str, name: str) -> Path:
        """Where a tensor is kept."""
        return self.path / self._entry(kind, name)["file"]

    def verify(self) -> None:
        """Compares every file's hash with the one noted when it was written.

        Raises:
            CorruptError: naming the first file that differs.
        """
        files = self.meta["files"]

        def found(name: str) -> str:
            return fingerprint_file(self.path / name) if (self.path / name).exists() else "no such file"

        with ThreadPoolExecutor(READERS) as readers:
            every = list(readers.map(found, files))
        for (name, expected), got in zip(files.items(), every, strict=True):
            path = self.path / name
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
        path = self.file(kind, name)
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
    return described(path, read_json(path / "checkpoint.json"))


def described(path: Path, meta: Any) -> Checkpoint:
    """A checkpoint by what its checkpoint.json says.

    Raises:
        CorruptError: that does not describe one.
    """
    if isinstance(meta, dict) and meta.get("format", FORMAT) != FORMAT:
        fix = "read it with the version of Headwater that wrote it"
        raise MismatchError(f"{path} has another format", got=meta["format"], expected=FORMAT, fix=fix)
    try:
        lacking = [each for each in ("format", "step", "fingerprint") if each not in meta]
        if MOMENTS[-1] in meta["tensors"]:  # of a training
            lacking += [each for each in ("updates",) if each not in meta]
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
    if not is_described(meta):
        raise CorruptError(
            f"{path / 'checkpoint.json'} does not describe a checkpoint",
            got="something else under step, updates, lr, model, files or tensors",
            fix="restore it, or delete this checkpoint; the one before it is taken instead",
        )
    return Checkpoint(path, meta)


def is_described(meta: dict[str, Any]) -> bool:
    """Whether what a checkpoint notes is of the kinds that it should be."""
    counts = [meta["step"], *(meta[name] for name in ("updates",) if name in meta)]
    kinds = meta["tensors"].values()
    entries = [entry for kind in kinds for entry in (kind.values() if isinstance(kind, dict) else [kind])]
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and type(meta.get("lr", 0.0)) in (int, float)
        and all(isinstance(part, str) for item in meta["files"].items() for part in item)
        and all(is_tensor_entry(entry) for entry in entries)
        and same_kinds(meta.get("model"), ModelSettings())
        and same_kinds(meta.get("optimizer"), OptimizerSettings())
    )


def model_settings(checkpoint: Checkpoint) -> ModelSettings:
    """The settings of a checkpoint's model.

    Raises:
        CorruptError: they are not those of a model, or not of one that its tensors could be.
    """
    saved: Any = checkpoint.meta.get("model")
    try:
        settings = ModelSettings(**saved)
        wrong = [str(problem) for problem in settings.problems()]
    except TypeError as error:
        wrong = [str(error)]
    if wrong:
        raise CorruptError(
            f"{checkpoint.path / 'checkpoint.json'} does not describe a model",
            got="; ".join(wrong),
            expected="the settings under model",
            fix="restore it, or use another checkpoint",
        )
    return settings


def is_tensor_entry(entry: Any) -> bool:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    return whole and isinstance(entry.get("file"), str)


def same_kinds(saved: Any, known: Any) -> bool:
    """Whether saved settings, if there are any, are values of the kinds that a section of settings has."""
    if saved is None:
        return True
    if not isinstance(saved, dict):
        return False
    for name, value in saved.items():
        default = getattr(known, name, None)
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if default is not None and type(value) not in kinds:
            return False
    return True


def steps_in(directory: Path) -> list[int]:
    """Steps of the whole checkpoints in a run's checkpoint directory, in order."""
    return sorted(_step_of(name) for name in _names_in(directory) if (directory / name / "checkpoint.json").exists())


def _names_in(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir() if _NAME.fullmatch(entry.name)] if directory.is_dir() else []


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def newest(directory: Path, say: Callable[[str], None] = print, *, every_byte: bool = False) -> Checkpoint | None:
    """The newest checkpoint that is whole, None if there are no checkpoints; damaged ones are passed over and named.

    Files that are as they were when their bytes were last compared are not read (see `compared`).

    Args:
        every_byte: read them all the same.

    Raises:
        CorruptError: there are checkpoints, and none of them is whole.
    """
    names = sorted(_names_in(directory), key=_step_of)
    for name in reversed(names):
        path = directory / name
        try:
            checkpoint = open_checkpoint(path)
            if every_byte or not are_as_compared(path, checkpoint.meta["files"]):
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
