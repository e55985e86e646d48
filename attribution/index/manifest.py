"""index.json: what an index says of itself, and of the shards that are done while it is being built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headwater.train.artifacts import read_json

FORMAT = "headwater-index/1"
NORMS = {"norm": torch.float32, "raw_norm": torch.float32}
"""Kept exactly with every codec: the norm of the whitened row, and of the raw row that it came from."""

NOT_MADE_FROM = {"fingerprint", "complete", "codecs", "ids"}
"""Keys of index.json that its fingerprint does not cover."""

FINEST_FIRST = ("fp32", "bf16", "int8", "int4", "sign")


def recorded_files(path: Path, manifest: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """codec -> shard entries of an unfinished index, from the records of the shards that are done."""
    files: dict[str, list[dict[str, Any]]] = {codec: [] for codec in manifest["wanted_codecs"]}
    for record in sorted(path.glob("rows-*.json")):
        for entry in read_json(record)["files"]:
            files[entry["codec"]].append({key: value for key, value in entry.items() if key != "codec"})
    return files
