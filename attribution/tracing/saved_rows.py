"""Query rows as an artifact: made once, on any layout, saved, and asked with wherever the index is.

A file is safetensors: `rows`, float32 [Q, D], raw as the gradients came; of further indexes `rows.1`, `rows.2`, ...;
and, as JSON under `headwater` in its metadata, the queries' texts and what each index's rows are made with. Rows that
somebody else made are one matrix for one index: a safetensors file of one tensor, or a .npy file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.index.reader import Index
from headwater.attribution.rows.checks import require_finite, require_width
from headwater.attribution.rows.norms import unit_rows
from headwater.attribution.tracing.queries import Query, as_query
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import atomic_path, fingerprint
from headwater.train.tensor_files import load_tensors, save_tensors

FORMAT = "headwater-query-rows/1"
ENDINGS = (".safetensors", ".npy")
_MADE_WITH = ("loss", "correction", "projection", "eps", "optimizer_state", "model_fingerprint")
_FIX = "make them again with `headwater queries`"


@dataclass(frozen=True, slots=True)
class QueryRows:
    """Queries with their rows.

    Attributes:
        queries: Q of them.
        rows: for each index raw rows float32 [Q, D].
    """

    queries: list[Query]
    rows: list[Tensor]

    def mean(self, *, unit: bool, group: str = "", name: str = "mean") -> QueryRows:
        """The mean of all queries, or of each group.

        Args:
            unit: of rows at unit norm, so that each query counts the same; else of the rows as they are, whose products
                are the mean of the queries' own.
            group: the field of the queries that names their group; empty: all are one.
            name: of the one group.

        Raises:
            UserError: a query lacks the field.
        """
        lacking = next((each for each in self.queries if group and group not in each.record), None)
        if lacking is not None:
            raise UserError(
                f"query {lacking.example_id} belongs to no group",
                got=f"no field {group!r}",
                expected="one in every query",
                fix="set `group` to a field that all queries have, or mean=true without it",
            )
        names = [str(each.record[group]) if group else name for each in self.queries]
        places = {each: place for place, each in enumerate(dict.fromkeys(names))}
        of_Q = torch.tensor([places[each] for each in names])
        counts_G1 = of_Q.bincount(minlength=len(places))[:, None]
        means = []
        for rows_QD in self.rows:
            each_QD = unit_rows(rows_QD) if unit else rows_QD
            sums_GD = torch.zeros(len(places), rows_QD.shape[1], dtype=torch.float64)
            means.append((sums_GD.index_add_(0, of_Q, each_QD.double()) / counts_G1).float())
        members = [[query for query, own in zip(self.queries, names, strict=True) if own == each] for each in places]
        return QueryRows([_as_one(each, m) for each, m in zip(places, members, strict=True)], means)


def _as_one(name: str, members: list[Query]) -> Query:
    """The query that stands for a group."""
    gold = dict.fromkeys(entry for query in members for entry in query.gold)
    record = {"mean_of": [query.example_id for query in members]}
    return Query(name, f"the mean of {len(members)} queries", name, tuple(gold), record=record)


def is_rows_file(path: str | Path) -> bool:
    """Whether a file of queries is one of rows, by its name."""
    return Path(path).suffix in ENDINGS


def save_rows(path: str | Path, asked: QueryRows, indexes: Sequence[Index]) -> None:
    """Writes query rows, atomically."""
    about = {
        "format": FORMAT,
        "queries": [_line_of(query) for query in asked.queries],
        "made_with": [made_with(index) for index in indexes],
    }
    tensors = {_tensor_of(place): rows_QD for place, rows_QD in enumerate(asked.rows)}
    with atomic_path(path) as part:
        save_tensors(part, tensors, {"headwater": json.dumps(about, ensure_ascii=False)})


def load_rows(path: str | Path, indexes: Sequence[Index], queries: Sequence[Query] | None = None) -> QueryRows:
    """Reads query rows for these indexes.

    Args:
        queries: what the rows are of, if the file does not say; what it says has to be the same.

    Raises:
        MissingError, CorruptError: there is no such file, or it is none of rows.
        MismatchError: they are of other indexes or queries.
        NonFiniteRowsError: NaN or infinity in one.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"query rows {path} are missing", fix="run `headwater queries CONFIG` first")
    held, rows = _read_own(path, indexes) or (None, _read_foreign(path, indexes))
    for index, rows_QD in zip(indexes, rows, strict=True):
        require_width(rows_QD, index.layout, f"query rows {path}")
        require_finite(rows_QD, what=f"query rows of {path}")
    if held is not None and queries is not None and [q.example_id for q in held] != [q.example_id for q in queries]:
        what = f"{path} holds rows of other queries than the file of queries"
        raise MismatchError(what, got=f"{len(held)} queries", expected=f"{len(queries)}, in the same order", fix=_FIX)
    count = len(rows[0])
    found = list(queries or held or [Query(str(n), f"row {n} of {path.name}", str(n)) for n in range(count)])
    if len(found) != count or not count:
        raise MismatchError(
            f"{path} does not hold a row for each query", got=f"{count} rows", expected=f"{len(found)}", fix=_FIX
        )
    return QueryRows(found, rows)


def made_with(index: Index) -> dict[str, Any]:
    """What rows must have in common with an index: not its corpus, nor its codecs or curvature."""
    return {
        "layout": fingerprint(index.manifest["layout"]),
        "captured": "captured" in index.manifest,
        **{key: index.manifest[key] for key in _MADE_WITH if key in index.manifest},
    }


def _tensor_of(place: int) -> str:
    return f"rows.{place}" if place else "rows"


def _line_of(query: Query) -> dict[str, Any]:
    """A query as a line of a file."""
    line = {**query.record, "example_id": query.example_id, "target": query.target, "gold": list(query.gold)}
    line |= {"messages": list(query.messages)} if query.messages else {"prompt": query.prompt}
    return line | ({"against": query.against} if query.against else {})


def _read_own(path: Path, indexes: Sequence[Index]) -> tuple[list[Query], list[Tensor]] | None:
    """Queries and rows of a file that `save_rows` wrote; None where it is another's."""
    if path.suffix != ".safetensors":
        return None
    about = _metadata(path)
    if about is None:
        return None
    try:
        if about["format"] != FORMAT:
            raise ValueError(f"the format {about['format']}")
        queries = [as_query(line, number) for number, line in enumerate(about["queries"])]
        made: list[dict[str, Any]] = [dict(each) for each in about["made_with"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{path} is not as it was written", got=repr(error), expected=FORMAT, fix=_FIX) from None
    if len(made) != len(indexes):
        raise MismatchError(f"{path} is of another number of indexes", got=len(made), expected=len(indexes), fix=_FIX)
    for index, noted in zip(indexes, made, strict=True):
        wanted = json.loads(json.dumps(made_with(index)))
        other = [key for key in {**noted, **wanted} if noted.get(key) != wanted.get(key)]
        if other:
            raise MismatchError(
                f"the query rows {path} were not made as those of {index.path} ({', '.join(other)})",
                got=noted.get(other[0]),
                expected=wanted.get(other[0]),
                fix=_FIX,
            )
    names = [_tensor_of(place) for place in range(len(indexes))]
    tensors = load_tensors(path, names, fix=_FIX)
    return queries, [tensors[name] for name in names]


def _metadata(path: Path) -> dict[str, Any] | None:
    """What a safetensors file says of itself as query rows; None where it says nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("headwater")
        return None if text is None else dict(json.loads(text))
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise CorruptError(f"{path} cannot be read", got=error, expected="a safetensors file", fix=_FIX) from None


def _read_foreign(path: Path, indexes: Sequence[Index]) -> list[Tensor]:
    """The one matrix of a file that another program wrote."""
    expected = "one matrix of numbers, [queries, dims]"
    if len(indexes) > 1:
        raise UserError(f"{path} holds rows for one index", got=f"{len(indexes)} indexes", fix="trace one at a time")
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise CorruptError(f"{path} cannot be read", got=error, expected=f"{expected}, as .npy") from None
        if array.ndim == 2 and array.dtype.kind in "fiu":
            return [torch.from_numpy(array.astype(np.float32))]
        raise CorruptError(f"{path} holds something else", got=f"{array.dtype} {array.shape}", expected=expected)
    tensors = load_tensors(path, fix=f"give {expected}")
    found = list(tensors.values())
    if len(found) != 1 or found[0].ndim != 2 or found[0].is_complex():
        got = ", ".join(f"{name} {list(value.shape)}" for name, value in list(tensors.items())[:3])
        raise CorruptError(f"{path} holds something else than query rows", got=got, expected=expected)
    return [found[0].float()]
