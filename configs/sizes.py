"""Sizes as people write them: `200GB`, `1.5 TB`, `64MiB`."""

from __future__ import annotations

import re

UNITS = {"": 1, "B": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", start=1)}}
UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), start=1)}

_BY_NAME = {name.lower(): factor for name, factor in UNITS.items()}


def bytes_of(text: str) -> int:
    """The bytes of a size: a number and a unit (B, kB, MB, GB, TB; KiB, MiB, GiB, TiB); nothing is 0.

    Raises:
        ValueError: it is no size.
    """
    if not text.strip():
        return 0
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].lower() not in _BY_NAME:
        raise ValueError(f"{text!r} is no size")
    return int(float(found[1]) * _BY_NAME[found[2].lower()])
