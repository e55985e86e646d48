"""A narrowed search: a condition over what is known of passages beside their text, looked at block by block.

    source == "factbook" and year >= 1990
    not draft and (place in ["Lima", "Cusco"] or "peru" in document)
    1900 <= year < 2000 or year is None

The language is a small part of Python's, parsed and never executed: comparisons (chained as there), `in` a list of
values or inside a text, `is None`, `and`, `or`, `not`, brackets, and the name of a column of flags by itself. A
comparison with a missing value does not hold.
"""

from __future__ import annotations

import ast
import difflib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from headwater.configs.errors import UserError

DEPTH = 50
"""Conditions inside conditions, at most."""
HELD = 32
"""Blocks whose masks are held: they are looked at before they are read, and again when they are scored."""
_COMPARE = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_FIX = 'write, for example, source == "factbook" and year >= 1990'


class Columns(Protocol):
    """Where the values come from; `train.stream.columns.PassageColumns` is one."""

    @property
    def names(self) -> list[str]: ...

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, Any]:
        """Values of passages [start, stop), pyarrow arrays."""
        ...


class Condition:
    """A condition over columns.

    Args:
        text: as above.

    Raises:
        UserError: it is none.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._refused("is no condition", getattr(error, "msg", error)) from None
        _check(self, self._tree, 0)
        self.columns = sorted({node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)})

    def mask(self, columns: Mapping[str, Any], count: int) -> np.ndarray:
        """For which of `count` passages it holds: bool [count].

        Raises:
            UserError: a column is of another kind than what it is compared with.
        """
        return self._holds(self._tree, columns, count)

    def _refused(self, what: str, got: Any, fix: str = _FIX) -> UserError:
        return UserError(f"where={self.text!r} {what}", got=got, fix=fix)

    def _holds(self, node: ast.expr, columns: Mapping[str, Any], count: int) -> np.ndarray:
        if isinstance(node, ast.BoolOp):
            masks = [self._holds(each, columns, count) for each in node.values]
            return np.logical_and.reduce(masks) if isinstance(node.op, ast.And) else np.logical_or.reduce(masks)
        if isinstance(node, ast.UnaryOp):
            return ~self._holds(node.operand, columns, count)
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            pairs = zip(operands, node.ops, operands[1:], strict=False)
            return np.logical_and.reduce([self._compared(*each, columns, count) for each in pairs])
        value = self._value(node, columns)
        if not isinstance(value, pa.Array):
            return np.full(count, bool(value))
        if not (pa.types.is_boolean(value.type) or pa.types.is_null(value.type)):
            raise self._refused(f"takes {ast.unparse(node)} for a flag", str(value.type), "compare it with something")
        return _as_mask(value)

    def _compared(
        self, left: ast.expr, sign: ast.cmpop, right: ast.expr, columns: Mapping[str, Any], count: int
    ) -> np.ndarray:
        a, b = self._value(left, columns), self._value(right, columns)
        if isinstance(sign, (ast.Is, ast.IsNot)):
            missing = _missing(a)
            return missing if isinstance(sign, ast.Is) else ~missing
        kinds = {kind for each in (a, *(b if isinstance(b, list) else [b])) if (kind := _kind(each)) != "nothing"}
        if len(kinds) > 1 or ("text" not in kinds and kinds and isinstance(a, str)):
            what = f"compares {ast.unparse(left)} with {ast.unparse(right)}"
            raise self._refused(what, " and ".join(sorted(kinds)), "texts stand in quotes, numbers do not")
        arrays = [each for each in (a, b) if isinstance(each, pa.Array)]
        if any(pa.types.is_null(each.type) for each in arrays):
            return np.zeros(count, dtype=bool)
        if not isinstance(sign, (ast.In, ast.NotIn)):
            return _as_mask(_COMPARE[type(sign)](a, b))
        if isinstance(b, list):
            numbers = kinds == {"number"}
            found = pc.is_in(a.cast(pa.float64()) if numbers else a, pa.array(list(map(float, b)) if numbers else b))
        else:
            found = pc.match_substring(b, a)
        mask, known = _as_mask(found), ~_missing(arrays[0])
        return known & (mask if isinstance(sign, ast.In) else ~mask)

    def _value(self, node: ast.expr, columns: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Name):
            return columns[node.id]
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [self._value(each, columns) for each in node.elts]
        return ast.literal_eval(node)


def _kind(value: Any) -> str:
    """What a value is, or the values of a column are."""
    if not isinstance(value, pa.Array):
        return "flag" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
    kinds = {"flag": pa.types.is_boolean, "text": pa.types.is_string, "nothing": pa.types.is_null}
    return next((kind for kind, holds in kinds.items() if holds(value.type)), "number")


def _missing(values: Any) -> np.ndarray:
    return values.is_null().to_numpy(zero_copy_only=False)


def _as_mask(values: Any) -> np.ndarray:
    """A missing answer is a no."""
    if pa.types.is_null(values.type):
        return np.zeros(len(values), dtype=bool)
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)


def _check(condition: Condition, node: ast.expr, depth: int) -> None:
    """Refuses whatever is no part of the language."""
    refused = condition._refused
    if depth > DEPTH:
        raise refused("is nested too deeply", f"more than {DEPTH} levels")
    below: list[ast.expr] = []
    if isinstance(node, ast.BoolOp):
        below = node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        below = [node.operand]
    elif isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, sign, right in zip(operands, node.ops, operands[1:], strict=False):
            _check_comparison(condition, left, sign, right)
    elif not isinstance(node, ast.Name):
        raise refused("is no condition", ast.unparse(node))
    for each in below:
        _check(condition, each, depth + 1)


def _check_comparison(condition: Condition, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> None:
    shown = ast.unparse(ast.Compare(left, [sign], [right]))
    is_none = isinstance(right, ast.Constant) and right.value is None
    if isinstance(sign, (ast.Is, ast.IsNot)):
        fine = isinstance(left, ast.Name) and is_none
    elif isinstance(sign, (ast.In, ast.NotIn)):
        if isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            fine = isinstance(left, ast.Name) and bool(right.elts) and all(_is_constant(each) for each in right.elts)
        else:
            text = isinstance(left, ast.Constant) and isinstance(left.value, str)
            fine = text and isinstance(right, ast.Name)
    else:
        fine = all(isinstance(each, ast.Name) or _is_constant(each) for each in (left, right))
        fine = fine and any(isinstance(each, ast.Name) for each in (left, right))
    if not fine:
        raise condition._refused("holds a comparison that is not known", shown)


def _is_constant(node: ast.expr) -> bool:
    """A text, a number with its sign, or a flag."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
        return isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return isinstance(node, ast.Constant) and type(node.value) in (str, int, float, bool)


class Where:
    """A condition on the passages of a search.

    Args:
        text: the condition.
        columns: of the passages.

    Raises:
        UserError: it is none, or names a column that is not there.
    """

    def __init__(self, text: str, columns: Columns) -> None:
        self.condition, self._columns = Condition(text), columns
        self._last: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        unknown = [name for name in self.condition.columns if name not in columns.names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], columns.names, n=1)
            raise UserError(
                f"where={text!r} names a column that the passages have not",
                got=unknown[0],
                expected=", ".join(columns.names),
                fix=f"did you mean {near[0]}?"
                if near
                else "keep it with `columns` of the corpus's source, and build again",
            )

    def passing(self, start: int, stop: int) -> np.ndarray:
        """For which of the passages [start, stop) it holds: bool [n]."""
        passing_N = self._last.get((start, stop))
        if passing_N is None:
            read = self._columns.read(self.condition.columns, start, stop)
            passing_N = self._last[start, stop] = self.condition.mask(read, stop - start)
            if len(self._last) > HELD:
                self._last.popitem(last=False)
        return passing_N

    def apply(self, scores_NQ: Tensor, start: int, stop: int) -> None:
        """-inf for the passages [start, stop) for which it does not hold."""
        hidden_N = torch.from_numpy(~self.passing(start, stop)).to(scores_NQ.device)
        scores_NQ.masked_fill_(hidden_N[:, None], -torch.inf)
