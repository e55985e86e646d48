"""Checkpoints in an object store, `checkpoint.remote=s3://BUCKET/PREFIX`: sent behind the training's back once they lie
in the run, fetched where the run has lost them.

Under `PREFIX/step-NNNNNNNN/` checkpoint.json is written last and removed first, so that what has one is whole; it names
every file's hash, which whoever fetches compares. Under `PREFIX/records/` lies what the run had noted by then: metrics,
validation, probes, the ledger.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from headwater.configs.errors import CorruptError, MismatchError, UserError
from headwater.train.artifacts import atomic_path, read_json
from headwater.train.checkpoint import Checkpoint, described, newest, open_checkpoint
from headwater.train.compared import note_compared, state_of
from headwater.train.remote import Store, StoreError, attempted, do_each

META = "checkpoint.json"
_IN_STEP = re.compile(r"step-(\d{8,})/(.+)")
RECORDS = (
    *("provenance.json", "metrics.jsonl", "validation.jsonl", "stragglers.jsonl"),
    *("probes.parquet", "ledger/steps-*.parquet"),
)
"""What is sent beside the checkpoints, and fetched with one; paths below the run."""
SendFiles = Callable[[Path, Callable[[], bool]], None]
"""Sends a checkpoint's files as long as they are wanted."""


class RemoteCheckpoints:
    """Those of one run in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._sent: dict[str, tuple[int, int]] = {}

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in order."""
        return sorted(step for step, names in self._all().items() if META in names)

    def _all(self) -> dict[int, list[str]]:
        """What lies under each step, whole or not."""
        found: dict[int, list[str]] = {}
        for match in map(_IN_STEP.fullmatch, self.store.names("step-")):
            if match:
                found.setdefault(int(match[1]), []).append(match[2])
        return found

    def opened(self, step: int) -> Checkpoint:
        """What checkpoint.json says; the files stay where they are.

        Raises:
            CorruptError: it is none.
        """
        data = self.store.read(f"{name_of(step)}/{META}") or b""
        try:
            meta = json.loads(data)
        except (ValueError, RecursionError) as error:
            what = f"{self.store.address}/{name_of(step)}/{META} is not valid JSON"
            raise CorruptError(what, got=error, fix="remove this checkpoint there") from None
        return described(Path(f"{self.store.address}/{name_of(step)}"), meta)

    def fetch(self, step: int, directory: Path) -> Checkpoint:
        """Brings a checkpoint into a run's directory, where it appears whole or not at all.

        Raises:
            CorruptError: a file is not what was sent, or is not there.
        """
        files = self.opened(step).meta["files"]
        lacking = sorted(set(files) - set(self._all().get(step, [])))
        if lacking:
            raise CorruptError(f"{self.store.address}/{name_of(step)} lacks {', '.join(lacking[:3])}")
        final = directory / name_of(step)
        with atomic_path(final) as part:
            self.store.get_all([*files, META], part, f"{name_of(step)}/")
            open_checkpoint(part).verify()
        note_compared(final, files)
        self._fetch_records(directory.parent)
        return open_checkpoint(final)

    def _fetch_records(self, run: Path) -> None:
        """Those that are here end where an older checkpoint did; what they have beyond the fetched one is forgotten at
        the start anyway."""
        for name in (each.removeprefix("records/") for each in self.store.names("records/")):
            known = any(fnmatch(name, pattern) for pattern in RECORDS) and ".." not in Path(name).parts
            if known and not (name == "provenance.json" and (run / name).exists()):
                with atomic_path(run / name) as part:
                    self.store.get(f"records/{name}", part)

    def send(self, path: Path, wanted: Callable[[], bool] = lambda: True, send_files: SendFiles | None = None) -> None:
        """Sends a checkpoint of a run, unless just that is there already, and the run's records. Where it is not
        `wanted` any longer it is left half sent: without checkpoint.json it is none.

        Args:
            send_files: sends all that checkpoint.json names; this process alone does if it is not given.
        """
        meta = (path / META).read_bytes()
        there = self.store.read(f"{path.name}/{META}")
        if there == meta:
            return
        if there is not None:
            self.store.remove([f"{path.name}/{META}"])
        (send_files or self.send_files)(path, wanted)
        self._send_records(path.parent.parent, wanted)
        if wanted():
            self._require_all(path)
            self.store.put(path / META, f"{path.name}/{META}", wanted)

    def _require_all(self, path: Path) -> None:
        """Several may have sent, a process that outlived the start before this one among them: it is looked at once
        more before checkpoint.json says that all is there."""
        there = set(self.store.names(f"{path.name}/"))
        lacking = [name for name in read_json(path / META)["files"] if f"{path.name}/{name}" not in there]
        if lacking:
            raise StoreError(f"{self.store.address}/{path.name} lacks {', '.join(lacking[:3])}", got="not sent")

    def send_files(self, path: Path, wanted: Callable[[], bool], part: tuple[int, int] = (0, 1)) -> None:
        """Sends the files that checkpoint.json names, but those that are there already since sending broke off, and
        those that an earlier checkpoint has sent, which the store copies.

        Args:
            part: (rank, ranks): of all files every so many-th, the largest first.
        """
        files: dict[str, str] = read_json(path / META)["files"]
        names = sorted(files, key=lambda name: (-(path / name).stat().st_size, name))[part[0] :: part[1]]
        there = {name_of(step): set(found) for step, found in sorted(self._all().items(), reverse=True)}
        mine = there.pop(path.name, set())

        def put(name: str) -> None:
            file, key, digest = path / name, f"{path.name}/{name}", files[name]
            if not wanted() or (name in mine and self.store.holds(file, key, digest)):
                return
            sources = [f"{step}/{name}" for step, found in there.items() if name in found]
            if not self._copied(file, sources, key, digest):
                self.store.put(file, key, wanted, digest)

        do_each(put, names)

    def _copied(self, file: Path, sources: list[str], key: str, digest: str) -> bool:
        """Whether the store has made a file that checkpoints share, as hard links, of what it holds of another one."""
        if file.stat().st_nlink == 1:
            return False
        for source in sources:
            with contextlib.suppress(StoreError):  # removed meanwhile, or a store that does not copy: it is sent
                if self.store.holds(file, source, digest):
                    self.store.copy(source, key, digest)
                    return self.store.holds(file, key, digest)
        return False

    def _send_records(self, run: Path, wanted: Callable[[], bool]) -> None:
        for file in (file for pattern in RECORDS for file in sorted(run.glob(pattern))):
            name, state = str(file.relative_to(run)), state_of(file)
            if self._sent.get(name) != state and wanted():
                self.store.put(file, f"records/{name}", wanted)
                self._sent[name] = state

    def prune(self, keep: int, fixed: Iterable[int]) -> None:
        """Removes all but the newest `keep` checkpoints and the fixed ones, and what is left of others that were half
        sent before the newest; keep = 0 removes none that is whole."""
        found, protected = self._all(), set(fixed)
        whole = sorted(step for step, names in found.items() if META in names)
        half = [step for step in found.keys() - set(whole) if whole and step < whole[-1]]
        old = [step for step in whole if step not in protected][:-keep] if keep else []
        for step in (*half, *old):
            names = sorted(found[step], key=lambda name: name != META)  # the first to go
            self.store.remove([f"{name_of(step)}/{name}" for name in names])


class Uploads:
    """Sends checkpoints one after the other, behind the training's back.

    A store that cannot be reached stops no training: what was not sent is tried again with the next checkpoint, and at
    the end, where it is an error. Of those that wait, periodic ones give way to newer ones.

    Args:
        directory: the run's checkpoints.
        keep, fixed: as of the run's own.
        send_files: as of `RemoteCheckpoints.send`.
    """

    def __init__(
        self,
        remote: RemoteCheckpoints,
        directory: Path,
        keep: int,
        fixed: set[int],
        say: Callable[[str], None],
        send_files: SendFiles | None = None,
    ) -> None:
        self.remote, self.directory, self.keep, self.fixed, self.say = remote, directory, keep, fixed, say
        self.send_files = send_files
        self._lock = threading.Lock()
        self._waiting: set[int] = set()
        self._sending: int | None = None
        self._thread: threading.Thread | None = None
        self._error: UserError | None = None
        self._abandoned = threading.Event()

    @property
    def unsent(self) -> set[int]:
        """Steps whose files must stay until they are sent."""
        with self._lock:
            return self._waiting | ({self._sending} if self._sending is not None else set())

    def add(self, step: int) -> None:
        with self._lock:
            self._waiting = {each for each in self._waiting if each in self.fixed} | {step}
            self._start()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._error = None
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._abandoned.is_set():
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                step = self._sending = min(self._waiting)
                self._waiting.discard(step)
            try:
                path = self.directory / name_of(step)
                self.remote.send(path, lambda: not self._abandoned.is_set(), self.send_files)
                self.remote.prune(self.keep, self.fixed)
                error: UserError | None = None
            except StoreError as found:
                error = found
            except Exception as found:  # the run's disk, say
                fix = "look at the run's disk"
                error = UserError(f"{name_of(step)} cannot be sent to {self.remote.store.address}", got=found, fix=fix)
            with self._lock:
                self._sending = None
                if error is not None:
                    self._waiting.add(step)
                    self._error, self._thread = error, None
                    if not self._abandoned.is_set():
                        self.say(f"step {step} is not in {self.remote.store.address} yet: {error.what} ({error.got})")
                    return

    def try_again(self) -> None:
        """Begins to send what is not sent yet."""
        with self._lock:
            if self._waiting:
                self._start()

    def wait(self, seconds: float | None) -> bool:
        """Whether nothing is under way any longer, after so many seconds at most."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def conclude(self, *, patient: bool) -> None:
        """Says what is not sent, at the end of a training.

        Args:
            patient: the training has not been asked to stop: that something is not sent is an error.

        Raises:
            UserError: what the store says to the last of the tries.
        """
        if self._error is not None:
            if patient:
                raise self._error
        elif self.unsent:
            self.say(
                f"steps {sorted(self.unsent)} are not in {self.remote.store.address} yet: the next start sends them"
            )

    def abandon(self) -> None:
        """Sends nothing more, and breaks off what is under way: training has ended or broken off."""
        self._abandoned.set()


def newest_anywhere(
    directory: Path,
    remote: RemoteCheckpoints,
    accept: Callable[[Checkpoint], Any],
    say: Callable[[str], None],
    *,
    every_byte: bool,
) -> Checkpoint | None:
    """The newest whole checkpoint of a run, fetched if it is in the store alone; None if there is none anywhere.

    Args:
        accept: called with one in the store before it is fetched; raises if it is not this run's.

    Raises:
        CorruptError: there are checkpoints, and none is whole.
        StoreError: the run has none, and the store cannot be reached: a new beginning would be a surprise.
    """
    lost: CorruptError | None = None
    here: Checkpoint | None = None
    try:
        here = newest(directory, say, every_byte=every_byte)
    except CorruptError as error:
        lost = error
    if here is None:
        steps = remote.steps()
    else:
        steps = attempted(remote.steps, say) or []
    for step in reversed(steps):
        if here is not None and step <= here.step:
            break
        try:
            accept(remote.opened(step))
            say(f"fetching step {step} from {remote.store.address}")
            return remote.fetch(step, directory)
        except CorruptError as error:
            lost = lost or error
            say(f"passing over step {step} of {remote.store.address}: {error}")
    if here is not None and steps:
        require_same_run(here, remote, steps[-1], say)
    if here is None and lost is not None:
        raise lost
    return here


def require_same_run(here: Checkpoint, remote: RemoteCheckpoints, step: int, say: Callable[[str], None]) -> None:
    """Refuses to send a run's checkpoints to where another's lie.

    Raises:
        MismatchError: naming both streams.
    """
    there = attempted(lambda: remote.opened(step), say)
    if there is not None and there.meta.get("stream") != here.meta.get("stream"):
        raise MismatchError(
            f"{remote.store.address} holds checkpoints of another run",
            got=there.meta.get("stream"),
            expected=here.meta.get("stream"),
            fix="choose another checkpoint.remote",
        )


def name_of(step: int) -> str:
    return f"step-{step:08d}"
