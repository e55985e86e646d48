"""The filter of a list of questions: a small language, parsed into masks over columns; nothing in it is ever executed.

    relation:employer rank<=3            both hold (`and` may be written between)
    known:yes or prob>.5                 either
    not (target:"San Jose" city)         neither; a bare word is looked for in prompt, target and id

Grammar:  any := all ("or" all)*      all := one (["and"] one)*      one := ["not" | "-"] ("(" any ")" | term)
          term := FIELD (":" | "=" | "!=" | "<" | "<=" | ">" | ">=") VALUE | WORD | "QUOTED WORDS"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater.attribution.explorer.limits import FILTER_CHARACTERS
from headwater.configs.errors import UserError

DEPTH = 12
"""Brackets inside brackets, at most."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<bracket>[()])|(?P<field>[a-z_]+)(?P<sign>!=|<=|>=|[:=<>])(?P<value>"[^"]*"|[^\s()]*)"""
    r"""|"(?P<quoted>[^"]*)"|(?P<minus>-(?=[^\s]))|(?P<word>[^\s()"]+))""",
    re.IGNORECASE,
)
YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class FilterError(UserError):
    """A filter that cannot be understood; it says where and what there is."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What a filter may ask of Q questions.

    Attributes:
        texts: name -> lower-case strings [Q].
        numbers: name -> float [Q]; NaN where it is not known, which no comparison holds for.
        flags: name -> float [Q], 1 or 0; NaN where it is not known.
        words: names of the texts that a bare word is looked for in.
    """

    texts: Mapping[str, pa.Array]
    numbers: Mapping[str, np.ndarray]
    flags: Mapping[str, np.ndarray]
    words: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [*self.texts, *self.numbers, *self.flags]

    def __len__(self) -> int:
        return len(next(iter(self.texts.values())))


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of a filter and where it begins."""

    kind: str
    text: str
    at: int
    sign: str = ""
    value: str = ""


def mask_of(text: str, columns: Columns) -> np.ndarray:
    """Which questions a filter lets through, bool [Q]; all if it is empty.

    Raises:
        FilterError: it cannot be understood.
    """
    if len(text) > FILTER_CHARACTERS:
        raise FilterError("the filter is too long", got=f"{len(text)} characters", expected=f"{FILTER_CHARACTERS}")
    tokens = tokens_of(text)
    if not tokens:
        return np.ones(len(columns), bool)
    parser = _Parser(tokens, columns)
    mask = parser.any(0)
    if parser.at < len(tokens):
        raise FilterError(f"the filter has a bracket too many, at character {tokens[parser.at].at + 1}", got=text)
    return mask


def tokens_of(text: str) -> list[Token]:
    tokens, at = [], 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None or found.end() == at:
            raise FilterError(f"the filter breaks off at character {at + 1}", got=text[at : at + 40])
        start = found.start() + len(found.group()) - len(found.group().lstrip())
        if found["field"]:
            value = found["value"].strip('"')
            tokens.append(Token("term", found["field"].lower(), start, found["sign"], value))
        elif found["bracket"]:
            tokens.append(Token(found["bracket"], found["bracket"], start))
        elif found["minus"]:
            tokens.append(Token("not", "-", start))
        elif found["quoted"] is not None:
            tokens.append(Token("word", found["quoted"], start))
        else:
            word = found["word"]
            kind = word.lower() if word.lower() in ("and", "or", "not") else "word"
            tokens.append(Token(kind, word, start))
        at = found.end()
    return tokens


class _Parser:
    """Goes through the tokens once, from left to right."""

    def __init__(self, tokens: list[Token], columns: Columns) -> None:
        self.tokens, self.columns, self.at = tokens, columns, 0

    def _next(self) -> str:
        return self.tokens[self.at].kind if self.at < len(self.tokens) else "end"

    def any(self, depth: int) -> np.ndarray:
        mask = self.all(depth)
        while self._next() == "or":
            self.at += 1
            mask = mask | self.all(depth)
        return mask

    def all(self, depth: int) -> np.ndarray:
        mask = self.one(depth)
        while self._next() not in ("or", ")", "end"):
            if self._next() == "and":
                self.at += 1
            mask = mask & self.one(depth)
        return mask

    def one(self, depth: int) -> np.ndarray:
        kind = self._next()
        if kind in ("end", "or", "and", ")"):
            raise FilterError("the filter breaks off: something should follow", expected="a word, or field:value")
        if depth > DEPTH:
            raise FilterError("the filter has too many brackets inside brackets", expected=f"at most {DEPTH}")
        token = self.tokens[self.at]
        self.at += 1
        if kind == "not":
            return ~self.one(depth + 1)
        if kind == "(":
            mask = self.any(depth + 1)
            if self._next() != ")":
                raise FilterError("the filter lacks a closing bracket", got=f"( at character {token.at + 1}")
            self.at += 1
            return mask
        return term(token, self.columns) if kind == "term" else words(token.text, self.columns)


def term(token: Token, columns: Columns) -> np.ndarray:
    """Questions for which `field sign value` holds."""
    name, sign, value = token.text, token.sign, token.value
    if name in columns.texts:
        if sign not in (":", "=", "!="):
            raise FilterError(f"{name} is text", got=f"{name}{sign}", expected=f"{name}:words")
        mask = contains(columns.texts[name], value) if sign == ":" else same(columns.texts[name], value)
        return ~mask if sign == "!=" else mask
    if name in columns.flags:
        wanted = YES.get(value.lower())
        if wanted is None or sign not in (":", "=", "!="):
            raise FilterError(f"{name} is yes or no", got=f"{name}{sign}{value}", expected=f"{name}:yes or {name}:no")
        return columns.flags[name] == float(wanted != (sign == "!="))
    if name in columns.numbers:
        try:
            number = float(value.replace("−", "-"))
        except ValueError:
            raise FilterError(f"{name} is a number", got=f"{name}{sign}{value}", expected=f"{name}<=3, say") from None
        return SIGNS[sign](columns.numbers[name], number)
    raise FilterError(
        f"no question has a {name}",
        got=f"{name}{sign}{value}"[:80],
        expected=", ".join(columns.names),
        fix="put words in quotes to look for them as they stand",
    )


SIGNS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ":": lambda values, number: values == number,
    "=": lambda values, number: values == number,
    "!=": lambda values, number: (values != number) & ~np.isnan(values),
    "<": lambda values, number: values < number,
    "<=": lambda values, number: values <= number,
    ">": lambda values, number: values > number,
    ">=": lambda values, number: values >= number,
}


def words(text: str, columns: Columns) -> np.ndarray:
    """Questions that have the words in one of their texts."""
    masks = [contains(columns.texts[name], text) for name in columns.words]
    return np.logical_or.reduce(masks)


def contains(texts: pa.Array, wanted: str) -> np.ndarray:
    return pc.match_substring(texts, wanted.lower()).to_numpy(zero_copy_only=False)


def same(texts: pa.Array, wanted: str) -> np.ndarray:
    return pc.equal(texts, wanted.lower()).to_numpy(zero_copy_only=False)
