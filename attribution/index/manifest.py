"""index.json: what an index says of itself, and of the shards that are done while it is being built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headwater.train.artifacts import read_json
from headwater.train.places import noted_places

FORMAT = "headwater-index/1"
NORMS = {"norm": torch.float32, "raw_norm": torch.float32}
"""Kept exactly with every codec: the norm of the whitened row, and of the raw row that it came from."""

NOT_MADE_FROM = {"fingerprint", "complete", "codecs", "ids", "places"}
"""Keys of index.json that its fingerprint does not cover."""

PLACES = ("run", "path", "optimizer_state", "base")
"""Settings of a model that say where it lies: indexes made before they had `places` note them in `model`."""

FINEST_FIRST = ("fp32", "bf16", "int8", "int4", "sign")


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


def recorded_files(path: Path, manifest: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """codec -> shard entries of an unfinished index, from the records of the shards that are done."""
    files: dict[str, list[dict[str, Any]]] = {codec: [] for codec in manifest["wanted_codecs"]}
    for record in sorted(path.glob("rows-*.json")):
        for entry in read_json(record)["files"]:
            files[entry["codec"]].append({key: value for key, value in entry.items() if key != "codec"})
    return files
