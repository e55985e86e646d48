"""What a run's corpus is made from, recorded, so that another configuration is refused instead of mixed in."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headwater.configs.errors import MismatchError, UserError
from headwater.train.artifacts import RunDir, fingerprint, fingerprint_file, read_json, remove, write_json
from headwater.train.corpus.documents import describe_source, described_fields
from headwater.train.corpus.settings import SAMPLE_BYTES, CorpusSettings, SourceSettings
from headwater.train.facts.types import FactSet
from headwater.train.places import note_place, noted_places

VERSION = 1
"""Raised when the same configuration would give other bytes."""

ORIGIN = "corpus/origin.json"
"""What a run's corpus is made from: the first file that a build writes."""

MADE = "corpus/made.json"
"""The fingerprint of the tokenizer.json that a build has written, so that it never takes away another."""


def note_made(run: RunDir, tokenizer: Path) -> None:
    """Notes the tokenizer that is about to become the run's."""
    write_json(run.path / MADE, {"tokenizer.json": fingerprint_file(tokenizer)})


def remove_made(run: RunDir) -> None:
    """Takes away the tokenizer that an unfinished build of another configuration has made.

    Raises:
        UserError: it is not the one that was made here.
    """
    if not run.tokenizer.exists():
        return
    made = read_json(run.path / MADE).get("tokenizer.json") if (run.path / MADE).exists() else None
    if run.tokenizer.is_symlink() or fingerprint_file(run.tokenizer) != made:
        raise UserError(
            f"{run.tokenizer} was not made by the build that stopped here",
            expected="the tokenizer of another configuration, which would be made again",
            fix="choose another `out`, or move the file away",
        )
    remove(run.tokenizer)


def describe_corpus(corpus: CorpusSettings, facts: FactSet) -> dict[str, Any]:
    """What the tokenizer and the base corpus are made from, each as a fingerprint, and the settings in clear."""
    settings = asdict(corpus)
    for unrelated in ("workers", "engine", "remote", "cache", "cache_bytes"):
        settings.pop(unrelated)
    eos = settings["tokenizer"].pop("eos")
    if settings.pop("end_token"):  # noted only where it is on, so that corpora built before it was there stay the same
        settings["end_token"] = eos or True
    if settings["tokenizer"]["sample_bytes"] == SAMPLE_BYTES:
        settings["tokenizer"].pop("sample_bytes")
    for name, unused in (("begin_token", "every"), ("held_out", 0)):
        if settings[name] == unused:
            settings.pop(name)
    settings["sources"] = [described_fields(source) for source in corpus.sources]
    if corpus.prebuilt:
        kept = {name: settings[name] for name in ("prebuilt", "seq_len", "max_tokens", "window")}
        base, content = fingerprint([VERSION, kept]), adopted(corpus.prebuilt)
        content = content and fingerprint([VERSION, {**kept, "prebuilt": content}])
        return {"tokenizer": base, "base": base, "content": content, "settings": kept, "sources": []}
    sources = [describe_source(source) for source in corpus.sources]
    read: Any = None
    if corpus.tokenizer.path:
        learnt_from = fingerprint_file(corpus.tokenizer.path) if Path(corpus.tokenizer.path).is_file() else None
    else:
        read = [passage.text for passage in facts.passages]
        learnt_from = fingerprint([sources, settings["seed"], read])
    tokenizer = fingerprint([VERSION, settings["tokenizer"], learnt_from])
    base = fingerprint([VERSION, settings, sources, tokenizer])
    content = wherever(settings, sources, read if read is not None else learnt_from)
    return {"tokenizer": tokenizer, "base": base, "content": content, "settings": settings, "sources": sources}


def wherever(settings: dict[str, Any], sources: list[dict[str, Any]], learnt_from: Any) -> str:
    """A fingerprint of what a corpus is made from that does not say where it lies. A single file's name stays: ids may
    be made of it."""
    unplaced = []
    for source in sources:
        alone = [name for name, *_ in source.get("files", [])] == ["."]
        unplaced.append({**source, "path": Path(source["path"]).name if alone else ""})
    tokenizer = {**settings["tokenizer"], "path": bool(settings["tokenizer"]["path"])}
    return fingerprint([VERSION, {**settings, "sources": None, "tokenizer": tokenizer}, unplaced, learnt_from])


def adopted(prebuilt: str) -> str | None:
    """What tells a corpus on this machine from others, wherever it lies."""
    manifest = Path(prebuilt) / "manifest.json"
    return fingerprint_file(manifest) if "://" not in prebuilt and manifest.is_file() else None


def check_origin(run: RunDir, origin: dict[str, Any]) -> dict[str, Any]:
    """Records what a run's corpus is made from, or compares with what was recorded.

    A build that never came to its end (the configuration was wrong, and has been corrected) does not bind the next one.

    Returns:
        The record that the run is gone on with: its files may lie elsewhere by now.

    Raises:
        MismatchError: naming what differs.
    """
    path = run.path / ORIGIN
    recorded = read_json(path) if path.exists() else None
    unmarked = {"began_in": None, "content": None}
    if recorded is not None and {**recorded, **unmarked} == {**origin, **unmarked}:
        return origin
    if recorded is None or not (run.corpus / "base" / "manifest.json").exists():
        remove_made(run)
        write_json(path, origin)
        return origin
    if origin["content"] and recorded.get("content") == origin["content"]:
        return recorded
    differing = differences(
        {**recorded.get("settings", {}), "sources": recorded.get("sources")},
        {**origin["settings"], "sources": origin["sources"]},
    )
    if not differing:
        differing = [
            (
                "facts or seed: the tokenizer is trained on what is invented",
                recorded.get("tokenizer"),
                origin["tokenizer"],
            )
        ]
    names, found, wanted = zip(*differing, strict=True)
    raise MismatchError(
        f"{run.corpus} was made from another configuration ({', '.join(names)})",
        got=found if len(found) > 1 else found[0],
        expected=wanted if len(wanted) > 1 else wanted[0],
        fix=f"choose another `out`, or remove {run.path}",
    )


def found_again(corpus: CorpusSettings, run: RunDir) -> CorpusSettings:
    """The settings with relative paths that are not there from here leading to where the run was begun from, and the
    chat template that is used where none is given."""
    path = run.path / ORIGIN
    recorded = read_json(path) if path.exists() else None
    starts = noted_places(recorded.get("began_in", []), run.path) if isinstance(recorded, dict) else []

    def found(name: str) -> str:
        if not name or "://" in name or Path(name).exists():
            return name
        return next((str(start / name) for start in starts if (start / name).exists()), name)

    def template(source: SourceSettings) -> str:
        if source.messages_field and not source.chat_template:
            return str(Path(found(corpus.tokenizer.path)).parent)
        return found(source.chat_template)

    return replace(
        corpus,
        sources=[replace(source, path=found(source.path), chat_template=template(source)) for source in corpus.sources],
        tokenizer=replace(corpus.tokenizer, path=found(corpus.tokenizer.path)),
        prebuilt=found(corpus.prebuilt),
    )


def note_start(corpus: CorpusSettings, run: RunDir) -> dict[str, Any]:
    """Where a run is begun from, where its settings have paths that hang on that."""
    paths = [path for source in corpus.sources for path in (source.path, source.chat_template)]
    names = [*paths, corpus.tokenizer.path, corpus.prebuilt]
    hanging = any(name and "://" not in name and not Path(name).is_absolute() for name in names)
    # As seen from the run alone: what a copy was made of is not read in its place.
    return {"began_in": note_place(Path.cwd(), run.path)[:1]} if hanging else {}


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = sorted({*recorded, *wanted})
    return [(key, recorded.get(key), wanted.get(key)) for key in keys if recorded.get(key) != wanted.get(key)]
