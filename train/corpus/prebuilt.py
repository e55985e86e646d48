"""Runs that share a corpus: one built before, in a directory or an object store, is adopted instead of built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headwater.configs.errors import MismatchError, MissingError
from headwater.configs.sizes import bytes_of
from headwater.train.artifacts import read_json, remove, write_bytes, write_json
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.mosaic import fetch
from headwater.train.places import note_place
from headwater.train.stream.corpus import open_corpus
from headwater.train.stream.shards import check_file

TABLES = ("manifest.json", "index.json", "passages.parquet", "tokenizer.json")
"""What a run keeps of a corpus whose shards lie elsewhere; the manifest, first, says whether there is one."""


def placed(remote: str, directory: Path) -> dict[str, Any]:
    """How a corpus notes where its shards are: an address, or a directory that may be moved along with it."""
    return {"remote": remote, **({"places": note_place(remote, directory)} if remote and "://" not in remote else {})}


def kept_here(corpus: CorpusSettings) -> dict[str, Any]:
    """How a corpus notes where fetched shards are put on a machine, and how many bytes of them may stay."""
    limit = bytes_of(corpus.cache_bytes)
    return {"cache": corpus.cache, **({"cache_bytes": limit} if limit else {})}


def keep_here(directory: Path, corpus: CorpusSettings) -> None:
    """Writes another cache, or another limit, into the manifest of a corpus that has been built."""
    manifest = read_json(directory / "manifest.json")
    rest = {name: value for name, value in manifest.items() if name not in ("cache", "cache_bytes")}
    there = {"cache": manifest.get("cache", ""), "cache_bytes": manifest.get("cache_bytes", 0)}
    if there != {"cache_bytes": 0, **kept_here(corpus)}:
        write_json(directory / "manifest.json", {**rest, **kept_here(corpus)})


def adopt_tables(corpus: CorpusSettings, work: Path) -> None:
    """Fetches the tables of `corpus.prebuilt` and checks that they suit the configuration.

    Args:
        corpus: names the corpus, and the lengths that the run expects.
        work: an unfinished corpus directory, made afresh.

    Raises:
        MissingError, UserError: there is no corpus at the address.
        MismatchError: it was built for other lengths.
    """
    remove(work)
    work.mkdir(parents=True)
    address = corpus.prebuilt if "://" in corpus.prebuilt else str(Path(corpus.prebuilt).resolve())
    for name in TABLES:
        if "://" in address:
            fetch(f"{address.rstrip('/')}/{name}", work / name)
            continue
        if not (Path(address) / name).is_file():
            raise MissingError(f"{address} is not a corpus: it has no {name}", fix="correct corpus.prebuilt")
        write_bytes(work / name, (Path(address) / name).read_bytes())
    manifest = read_json(work / "manifest.json")
    # A corpus that was itself adopted, or whose shards were uploaded, says where they are.
    remote = manifest.get("remote") or address
    unmarked = {**placed(remote, work), **kept_here(corpus), "window": corpus.window}
    write_json(work / "manifest.json", {**manifest, **unmarked})
    if (manifest.get("eos_id") is not None) != corpus.end_token:
        has = "true" if manifest.get("eos_id") is not None else "false"
        raise MismatchError(
            f"the corpus at {address} was built with corpus.end_token={has}",
            got=f"corpus.end_token={str(corpus.end_token).lower()}",
            fix=f"set corpus.end_token={has}",
        )
    adopted = open_corpus(work)
    check_file(work / "passages.parquet", adopted.manifest["table"])
    for name in ("seq_len", "max_tokens"):
        if adopted.manifest[name] != getattr(corpus, name):
            raise MismatchError(
                f"the corpus at {address} was built for another {name}",
                got=adopted.manifest[name],
                expected=getattr(corpus, name),
                fix=f"set corpus.{name}={adopted.manifest[name]}",
            )
