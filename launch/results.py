"""The results of a run, a study or a sweep in an object store: reports, tables, evaluations, traces, metrics, probes,
configurations. Checkpoints, corpora, ledgers, indexes and logs stay where they are.

    headwater send runs/demo s3://BUCKET/results/demo
    headwater fetch s3://BUCKET/results/demo runs/demo-results

In the store results.json names every file with the hash of its bytes. It says that they are on their way before the
first of them is sent and that all are there after the last, and who fetches compares each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import atomic_path, fingerprint, fingerprint_file, read_json, require_empty
from headwater.train.compared import state_of
from headwater.train.remote import Store, do_each, open_store

MANIFEST, FORMAT = "results.json", 1
MARKS = ("provenance.json", "study.json", "table.json", "cells")
"""Of a run, a study, an evaluation or the table of a sweep, a sweep: one of them lies in a directory of results."""
KINDS = frozenset((".json", ".jsonl", ".yaml", ".md", ".csv", ".html", ".png", ".svg", ".parquet"))
ELSEWHERE = frozenset(("checkpoints", "corpus", "ledger", "profile", "tensorboard", "wandb"))
"""Directories that hold no results."""
HEAVY = ("checkpoint.json", "index.json", "manifest.json")
"""What lies in a checkpoint, an index or a corpus, wherever a study keeps one."""


def send_results(directory: Path, address: str) -> int:
    """Sends the results in a directory, in the place of those that it has sent there before; returns how many files.

    Raises:
        MissingError: there is no such directory.
        UserError: it holds no results, or a file of the list's name; somebody writes into it; the address is none of a
            store, or holds something else.
        MismatchError: another directory's results lie there.
        StoreError: the store cannot be reached; what has arrived is not taken for results until it is sent again.
    """
    store = open_store(address)
    require_results(directory)
    names = list(result_files(directory))
    if MANIFEST in names:
        fix = "give it another name"
        raise UserError(f"{directory / MANIFEST} has the name of the list of what is sent", fix=fix)
    states = {name: state_of(directory / name) for name in names}
    files = {name: fingerprint_file(directory / name) for name in names}
    note: dict[str, Any] = {"format": FORMAT, "begun": begun(directory, names)}
    before = require_own_place(store, note["begun"])
    _write(store, {**note, "complete": False, "files": {**before, **files}})
    do_each(lambda name: store.put(directory / name, name), names)
    for name in names:
        if not (directory / name).exists() or state_of(directory / name) != states[name]:
            fix = "send the results again when nobody writes there"
            raise UserError(f"{directory / name} has changed while it was sent", fix=fix)
    store.remove(sorted(before.keys() - files.keys()))
    _write(store, {**note, "complete": True, "files": files})
    return len(names)


def fetch_results(address: str, directory: Path) -> int:
    """Brings results into a directory, which appears whole or not at all; returns how many files.

    Raises:
        UserError: the directory holds something, or the address is none of a store.
        MissingError: there are no results at that address, or not all of them.
        CorruptError: a file is not what was sent.
        StoreError: the store cannot be reached.
    """
    store = open_store(address)
    require_empty(directory)
    directory = directory.absolute()  # `.` has no name
    found = _read(store)
    if found is None or not found["complete"]:
        what = "holds no results" if found is None else "holds results that have not all arrived"
        raise MissingError(f"{store.address} {what}", fix="`headwater send DIR ADDRESS` puts them there")
    files: dict[str, str] = found["files"]
    with atomic_path(directory) as part:
        store.get_all(list(files), part)
        for name, digest in files.items():
            if (got := fingerprint_file(part / name)) != digest:
                what = f"{store.address}/{name} is not the file that was sent"
                raise CorruptError(what, got=got, expected=digest, fix="send the results again")
    return len(files)


def require_results(directory: Path) -> None:
    if not directory.is_dir():
        raise MissingError(f"{directory} is no directory", expected="a run, a study or a sweep")
    if not any((directory / mark).exists() for mark in MARKS):
        raise UserError(
            f"{directory} holds no results",
            expected=f"a run, a study or a sweep: one of {', '.join(MARKS)} in it",
            fix="name the directory that was `out`; an index is sent by `headwater index send`",
        )


def result_files(directory: Path) -> Iterator[str]:
    """Names of the results below a directory, in order."""
    for place, below, names in os.walk(directory):
        if place != str(directory) and any(mark in names for mark in HEAVY):
            below.clear()
            continue
        below[:] = sorted(name for name in below if name not in ELSEWHERE and not name.endswith((".part", ".parts")))
        for path in (Path(place, name) for name in sorted(names)):
            if path.suffix in KINDS and path.is_file():
                yield path.relative_to(directory).as_posix()


def begun(directory: Path, names: list[str]) -> str:
    """What tells a directory from others: however it grows and moves, its first start of a training; if there was none,
    where it is."""
    listed = [read_json(directory / name) for name in names if Path(name).name == "provenance.json"]
    starts = [each[0] for each in listed if isinstance(each, list) and each and isinstance(each[0], dict)]
    told = sorted([str(start.get("time")), str(start.get("command"))] for start in starts)
    return fingerprint(told[0] if told else str(directory.resolve()))


def require_own_place(store: Store, mine: str) -> dict[str, str]:
    """Refuses an address at which something else lies; returns the files that were sent there before."""
    found = _read(store)
    if found is None:
        if there := store.names():
            fix = "choose another prefix"
            raise UserError(
                f"{store.address} holds something else", got=there[0], expected="nothing, or results", fix=fix
            )
        return {}
    if found["begun"] != mine:
        what, fix = f"{store.address} holds the results of another directory", "choose another prefix"
        raise MismatchError(what, got=mine, expected=found["begun"], fix=fix)
    files: dict[str, str] = found["files"]
    return files


def _write(store: Store, found: dict[str, Any]) -> None:
    store.write(MANIFEST, json.dumps(found, indent=1).encode())


def _read(store: Store) -> dict[str, Any] | None:
    data = store.read(MANIFEST)
    if data is None:
        return None
    try:
        found = json.loads(data)
        files, kinds = found["files"], (found["format"], type(found["complete"]), type(found["begun"]))
        whole = kinds == (FORMAT, bool, str) and all(isinstance(each, str) for item in files.items() for each in item)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        what, fix = f"{store.address}/{MANIFEST} is no list of results", "remove it there, and send to another prefix"
        raise CorruptError(what, expected=f"format {FORMAT}, begun, complete and files", fix=fix)
    return dict(found)
