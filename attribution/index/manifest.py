"""index.json: what an index says of itself. It is small, whatever the size of the corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from headwater.configs.errors import CorruptError
from headwater.train.artifacts import fingerprint, read_json, require_match
from headwater.train.places import noted_places
from headwater.train.settings import CODEC_NAMES

FORMAT = "headwater-index/2"
NORMS = {"norm": torch.float32, "raw_norm": torch.float32}
"""Kept exactly with every codec: the norm of the whitened row, and of the raw row that it came from."""

TABLES = ("shards.parquet", "ids.parquet", "lookup.parquet")
"""Beside a finished index.json, which holds the hash of each: the shard files, the passages' ids, and their places."""

NOT_MADE_FROM = {"fingerprint", "complete", "codecs", "tables", "places"}
"""Keys of index.json that its fingerprint does not cover."""

PLACES = ("run", "path", "optimizer_state", "base")
"""Settings of a model that say where it lies: indexes made before they had `places` note them in `model`."""


def read_manifest(path: Path) -> dict[str, Any]:
    """index.json of an index, whole or not: what its fingerprint covers is as it was written, the rest is of its kind.

    Raises:
        MissingError, CorruptError, MismatchError: there is none, it is not as it was written, or of another format.
    """
    manifest = read_json(path / "index.json", made_by="headwater index CONFIG")
    fix = "restore it, or make the index again"
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), str):
        raise CorruptError(f"{path}/index.json is not that of an index", fix=fix)
    again = "python -m headwater.attribution.capture RUN" if "captured" in manifest else "headwater index CONFIG"
    made = f"remove it, and run `{again}` again with what it was made from"
    require_match(f"{path} is an index of another format than this version's", manifest["format"], FORMAT, made)
    what = f"the settings in {path}/index.json were changed"
    require_match(what, fingerprint(made_from(manifest)), str(manifest.get("fingerprint")), fix)
    wrong = [key for key, holds in _UNMARKED.items() if not holds(manifest)]
    if wrong:
        raise CorruptError(f"{path}/index.json is not as it was written", got=f"something else under {wrong}", fix=fix)
    return manifest


def _are_codecs(manifest: Mapping[str, Any]) -> bool:
    codecs = manifest.get("codecs")
    return (
        isinstance(codecs, dict)
        and set(codecs) <= set(CODEC_NAMES)
        and all(isinstance(each, dict) and all(type(n) is int for n in each.values()) for each in codecs.values())
    )


def _are_tables(manifest: Mapping[str, Any]) -> bool:
    tables = manifest.get("tables")
    if manifest.get("complete") is not True:
        return True
    return isinstance(tables, dict) and all(isinstance(tables.get(name), str) for name in TABLES)


def _are_places(manifest: Mapping[str, Any]) -> bool:
    places = manifest.get("places", {})
    return isinstance(places, dict) and all(
        name in PLACES and isinstance(noted, list) and noted and all(isinstance(each, str) for each in noted)
        for name, noted in places.items()
    )


_UNMARKED: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "complete": lambda manifest: isinstance(manifest.get("complete"), bool),
    "codecs": _are_codecs,
    "places": _are_places,
    "tables": _are_tables,
}
"""Keys that the fingerprint does not cover, and whether they hold what they should."""


def made_from(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What an index's fingerprint covers."""
    return {key: value for key, value in manifest.items() if key not in NOT_MADE_FROM}


def without_places(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What an index is made from, whichever version of this program wrote it, but for where that lies."""
    content = made_from(manifest)
    model = content.get("model")
    if isinstance(model, dict):
        content["model"] = {key: value for key, value in model.items() if key not in PLACES}
    return content


def model_places(path: Path, manifest: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Where what the index at `path` was made from may lie, by the setting that names it, the likelier place first."""
    if "places" in manifest:
        return {name: noted_places(noted, path) for name, noted in manifest["places"].items()}
    found = {name: [Path(manifest["model"][name])] for name in PLACES if manifest["model"].get(name)}
    if "run" in found:  # the one that it lies in may be a copy of the one that is named
        found["run"].insert(0, path.resolve().parent.parent)
    return found
