"""Opening a saved curvature, of whichever kind it is."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from headwater.attribution.curvature.full import FullWhitening
from headwater.attribution.curvature.kronecker import KroneckerWhitening
from headwater.attribution.curvature.whitening import NoWhitening, Whitening
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import CorruptError, MismatchError, MissingError
from headwater.train.artifacts import fingerprint_file


def load_whitening(path: str | os.PathLike[str], layout: RowLayout) -> Whitening:
    """Reads what `Whitening.save` wrote.

    Raises:
        MissingError, CorruptError: the file is not there, or not readable.
        MismatchError: it belongs to another row layout.
    """
    path = Path(path)
    if not path.exists():
        raise MissingError(f"{path} is missing", fix="run `headwater index` again")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path} is not a readable curvature file", got=error, fix="make the index again") from None
    if not {"damping", "count"} <= tensors.keys():
        raise CorruptError(f"{path} is not a curvature file", got=sorted(tensors)[:5], fix="make the index again")
    known = (float(tensors.pop("damping")), int(tensors.pop("count")))
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        what, name = key.split(".", 1)
        parts.setdefault(what, {})[name] = value
    mark = fingerprint_file(path)
    if "out_root" in parts:
        require_shapes(path, parts["out_root"], {span.name: (span.k_out, span.k_out) for span in layout})
        require_shapes(path, parts["in_root"], {span.name: (span.k_in, span.k_in) for span in layout})
        roots, values = ((parts[f"out_{what}"], parts[f"in_{what}"]) for what in ("root", "eigenvalues"))
        return KroneckerWhitening(layout, *known, roots, values, mark)
    if "root" in parts:
        require_shapes(path, parts["root"], {span.name: (span.dims, span.dims) for span in layout})
        return FullWhitening(layout, *known, parts["root"], parts["eigenvalues"], mark)
    return NoWhitening(layout, *known, mark)


def require_shapes(path: Path, roots: dict[str, Tensor], expected: dict[str, tuple[int, int]]) -> None:
    found = {name: tuple(value.shape) for name, value in roots.items()}
    if found != expected:
        raise MismatchError(f"{path} belongs to another row layout", got=found, expected=expected)
