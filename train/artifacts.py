"""Run directories and what lies in them: atomic files, fingerprints, provenance.

Nothing in a run is ever half written: a file is made beside its place under a `.part` name, flushed to disk and
renamed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError


@dataclass(frozen=True, slots=True)
class RunDir:
    """The names of everything in a run directory."""

    path: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> RunDir:
        return cls(Path(path))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def corpus(self) -> Path:
        return self.path / "corpus"

    @property
    def facts(self) -> Path:
        return self.path / "facts"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        return self.path / "validation.jsonl"

    @property
    def stragglers(self) -> Path:
        return self.path / "stragglers.jsonl"

    @property
    def profile(self) -> Path:
        """Traces of torch.profiler."""
        return self.path / "profile"

    @property
    def held_out(self) -> Path:
        """The corpus of documents that are never trained on."""
        return self.corpus / "held_out"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger"

    @property
    def probes(self) -> Path:
        return self.path / "probes.parquet"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def index(self, name: str) -> Path:
        return self.path / "index" / name

    def trace(self, name: str) -> Path:
        return self.path / "traces" / f"{name}.jsonl"


def require_directory(path: Path) -> None:
    """Refuses a run directory that is a file, or would lie below one."""
    for each in (path, *path.absolute().parents):
        if each.exists():
            if not each.is_dir():
                raise UserError(
                    f"{path} cannot be a run directory", got=f"{each} is a file", fix="choose another `out`"
                )
            return


def require_own(directory: Path, names: Iterable[str], mark: str) -> None:
    """Refuses a directory in which something stands where a stage would write, and that stage has left no mark there.

    Args:
        names: what the stage writes, or removes, in the directory.
        mark: the file that it writes there before anything else.

    Raises:
        UserError: naming what stands in the way; it is left as it is.
    """
    if (directory / mark).exists():
        return
    foreign = [name for name in names if os.path.lexists(directory / name)]
    if foreign:
        raise UserError(
            f"{directory} holds {', '.join(foreign)}, which was not written by this stage",
            got=f"no {mark} beside it",
            expected="an empty or new directory, or one that this stage has begun",
            fix="choose another `out`",
        )


def require_empty(out: Path) -> None:
    """Refuses a directory that holds anything already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already", expected="a new or empty directory", fix="choose another one")


def require_place_for_file(path: str | os.PathLike[str], key: str) -> None:
    """Refuses, before any work, a path that a file could not be written to in the end. Nothing is left of the trial.

    Raises:
        UserError: naming the setting `key`.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{key}={path} is a directory", expected="the path of a file", fix="add a file's name to it")
    made: list[Path] = []
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        made = make_directories(target.parent)
        part.touch()
    except OSError as error:
        raise UserError(f"{key}={path} cannot be written", got=error, fix=f"choose another `{key}`") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        remove_if_empty(made)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a `.part` path in the same directory; on success it is flushed and renamed to `path`, else removed.

    The yielded path may be written as a file or made into a directory; an existing target is replaced.
    """
    target = Path(path)
    made = make_directories(target.parent)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    remove(part)
    try:
        yield part
        sync(part)
        if part.is_dir() and target.exists():
            remove(target)
        os.replace(part, target)
        _flush(target.parent)
    except BaseException:
        remove(part)
        remove_if_empty(made)
        raise
    finally:
        remove(part)


def remove_parts(directory: Path, of: str = "*") -> None:
    """Removes what killed processes were writing in `directory`, of targets whose names match the pattern `of`."""
    for part in directory.glob(f"{of}.part"):
        remove(part)


@contextmanager
def undone_on_error(*paths: Path) -> Iterator[list[Path]]:
    """Where a `UserError` comes through, those of the paths that were not there before are removed again, with the
    directories that were made for them: a mistake leaves everything as it was.

    Yields:
        The paths that would be removed; emptied, the list lets them stay.
    """
    absent = [path for path in paths if not os.path.lexists(path)]
    made = [each for path in absent for each in missing_directories(path.parent)]
    try:
        yield absent
    except UserError:
        for path in absent:
            remove(path)
        remove_if_empty(sorted(set(made), key=lambda path: -len(path.parts)))
        raise


def missing_directories(path: Path) -> list[Path]:
    """A directory and those above it that are not there, the innermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing


def make_directories(path: Path) -> list[Path]:
    """Makes a directory and those above it; returns the ones that were not there, the innermost first."""
    missing = missing_directories(path)
    path.mkdir(parents=True, exist_ok=True)
    return missing


def remove_if_empty(directories: list[Path]) -> None:
    """Removes directories, the innermost first, up to the first that somebody has put something into."""
    for directory in directories:
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


def remove(path: Path) -> None:
    """Removes a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file, or a directory tree, to disk."""
    if path.is_dir():
        for each in path.iterdir():
            sync(each)
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def json_line(record: dict[str, Any]) -> str:
    """A record as a line of JSONL."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_json(path: str | os.PathLike[str], *, made_by: str | None = None) -> Any:
    """Reads a JSON artifact; `made_by` names the command that makes it, for the error when it is missing."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{path} is missing", fix=f"run `{made_by}` first" if made_by else None) from None
    except OSError as error:
        raise CorruptError(f"{path} cannot be read", got=error, fix="restore it, or mend its rights") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, thousands of digits, nested too deeply
        raise CorruptError(f"{path} is not valid JSON", got=str(error), fix="restore it, or make it again") from None


def fingerprint(value: Any) -> str:
    """xxh3-128 hex digest of bytes, or of the canonical JSON of any other value."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return xxhash.xxh3_128_hexdigest(data)


def fingerprint_file(path: str | os.PathLike[str]) -> str:
    """xxh3-128 hex digest of a file's bytes, read in blocks."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def require_match(what: str, got: str, expected: str, fix: str) -> None:
    """Refuses two artifacts that do not belong together.

    Raises:
        MismatchError: with both fingerprints.
    """
    if got != expected:
        raise MismatchError(what, got=got, expected=expected, fix=fix)


def write_provenance(
    run: RunDir, *, world_size: int, origin: dict[str, Any] | None = None, command: list[str] | None = None
) -> None:
    """Appends how this run was started: versions, git commit, command line, machine, world size, and `origin`, what it
    goes on from."""
    packages = (
        "torch",
        "megatron-core",
        "deepspeed",
        "mosaicml-streaming",
        "triton",
        "transformer-engine",
        "headwater",
    )
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command or sys.argv,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "world_size": world_size,
        "versions": versions,
        **(origin or {}),
    }
    starts = read_json(run.provenance) if run.provenance.exists() else []
    write_json(run.provenance, [*starts, entry])


def git_commit() -> str | None:
    """The commit of the source tree, with `+dirty` if it has uncommitted changes; None outside a checkout."""
    here = Path(__file__).resolve().parents[1]

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")) != here:
            return None  # an environment that lies in somebody else's repository
        return ask("rev-parse", "HEAD") + ("+dirty" if ask("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
