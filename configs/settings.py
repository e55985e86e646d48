"""How a settings dataclass is written: every field has a default, a line of help, and what it may be.

```python
@dataclass(kw_only=True, slots=True)
class TrainSettings:
    steps: int = setting(1000, "Optimizer steps in all.", minimum=1)
    precision: str = setting("fp32", "Number format of the forward pass.", choices=("fp32", "bf16"))
    model: ModelSettings = section(ModelSettings)

    renamed: ClassVar[dict[str, str]] = {"iterations": "steps"}  # optional: keys that are called otherwise now

    def problems(self) -> Iterator[Problem]:  # optional; keys are relative to this dataclass
        if self.steps % self.every:
            yield Problem("every", self.every, f"a divisor of steps = {self.steps}")
```
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

MISSING: Any = "???"
"""The default of a setting that has none: the user must give it."""

_METADATA_KEY = "headwater"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a setting may be beyond its type, and its line of help. Bounds hold for each element of a list."""

    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None

    def allows(self, value: Any) -> bool:
        """Whether one value (not a list) is allowed; None always is, since its type has been checked."""
        if value is None:
            return True
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        # Each comparison is written so that NaN fails it.
        return (
            value == value
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        bounds = [(">=", self.minimum), (">", self.above), ("<=", self.maximum), ("<", self.below)]
        return "a number " + " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Collection[Any] | None = None,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: the value when none is given (`MISSING`: one must be given); lists and dicts are copied.
        help: one line that says what it is.
        minimum, maximum: inclusive bounds of a number, or of each number of a list.
        above, below: exclusive bounds.
        choices: the only values allowed (None is also allowed where the type says so).
    """
    limits = Limits(help, minimum, maximum, above, below, None if choices is None else tuple(choices))
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata={_METADATA_KEY: limits})
    return dataclasses.field(default=default, metadata={_METADATA_KEY: limits})


def section(schema: type, help: str = "", **defaults: Any) -> Any:
    """A field that holds another settings dataclass, made with `defaults` in place of the dataclass's own."""
    return dataclasses.field(default_factory=lambda: schema(**defaults), metadata={_METADATA_KEY: Limits(help)})


def limits_of(field: dataclasses.Field[Any]) -> Limits:
    return field.metadata.get(_METADATA_KEY, Limits())


def renamed_keys(schema: type) -> dict[str, str]:
    """Keys that a schema once had, with what they are called now."""
    return getattr(schema, "renamed", {})


def field_types(schema: type) -> dict[str, Any]:
    """The resolved type of each field of a dataclass, in order."""
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def without_none(hint: Any) -> Any:
    """`X` of `X | None`; any other type unchanged."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [each for each in typing.get_args(hint) if each is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def allows_none(hint: Any) -> bool:
    return hint is Any or type(None) in typing.get_args(hint)


def type_name(hint: Any) -> str:
    """A type as a user would write it: `int`, `list[str]`, `float or null`."""
    if allows_none(hint) and hint is not Any:
        return f"{type_name(without_none(hint))} or null"
    if typing.get_origin(hint) in (list, dict) and dataclasses.is_dataclass(typing.get_args(hint)[-1]):
        return "list of sections" if typing.get_origin(hint) is list else "sections by name"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is not None:
        return str(hint).replace("typing.", "")
    if dataclasses.is_dataclass(hint):
        return "a section (key: value lines)"
    return getattr(hint, "__name__", str(hint))


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as documentation: its dotted key, type, default (text), what is allowed, and help."""

    key: str
    type: str
    default: str
    allowed: str
    help: str


def describe(schema: type, prefix: str = "", default: Any = None) -> Iterator[Row]:
    """Yields every setting of a schema, sections opened, in the order in which they are declared."""
    default = schema() if default is None else default
    hints = field_types(schema)
    for field in dataclasses.fields(schema):
        value, limits, hint = getattr(default, field.name), limits_of(field), hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from describe(typing.cast(type, hint), f"{prefix}{field.name}.", value)
            continue
        bounded = limits != Limits(limits.help)
        shown = "(must be given)" if isinstance(value, str) and value == MISSING else _yaml_text(value)
        shown = shown if shown or not isinstance(value, str) else '""'
        yield Row(f"{prefix}{field.name}", type_name(hint), shown, str(limits) if bounded else "", limits.help)


def _yaml_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
