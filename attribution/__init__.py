"""From a prediction back to the passages that taught it: gradient rows, their index, search, evaluation, reports.

```python
from headwater.attribution import Attributor

with Attributor.open("runs/demo/index/headwater") as attributor:
    results = attributor.trace([("The capital of Peru is", "Lima")], top_k=5)
```
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported when first used: torch is slow to load.
_HOMES = {
    "Attributor": "headwater.attribution.tracing.attributor",
    "Query": "headwater.attribution.tracing.queries",
    "open_index": "headwater.attribution.index.reader",
    "trace": "headwater.attribution.tracing.run",
}

__all__ = ["Attributor", "Query", "open_index", "trace"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
