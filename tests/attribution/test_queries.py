"""Which lines are queries, and which questions are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tokenizers import Tokenizer, models

from headwater.attribution.tracing.queries import Query, read_queries
from headwater.attribution.tracing.query_rows import examples_of, query_rows
from headwater.configs.errors import CorruptError, UserError
from headwater.train.tokenizer import TextTokenizer

BAD: list[Any] = [
    {"prompt": "a", "target": ""},
    {"prompt": "a", "target": " "},
    {"prompt": "a"},
    {"prompt": ["a"], "target": "b"},
    {"prompt": "a", "target": "b", "against": ["c", "d"]},
    {"prompt": "a", "target": "b", "against": "b"},
    {"prompt": "a", "target": "b", "against": " b"},
    {"prompt": "a", "target": "b", "gold": "doc#0"},
    {"prompt": "a", "target": "b", "gold": [1]},
    {"prompt": "\ud800", "target": "b"},
    {"prompt": "a", "target": "b", "example_id": "\udfff"},
    ["a", "b"],
    None,
]


@pytest.mark.parametrize("record", BAD)
def test_what_is_no_query_is_named_by_its_line(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "a", "target": "b"}\n' + json.dumps(record) + "\n")
    with pytest.raises(CorruptError, match="line 2 is not a query"):
        read_queries(path)


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5_000, b'{"prompt": "\xe4", "target": "b"}']
)
def test_bytes_from_the_wild_are_one_error(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(CorruptError, match="line 1 is not a query"):
        read_queries(path)


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    text = "one\N{LINE SEPARATOR}two\x85three"
    line = json.dumps({"example_id": "x", "prompt": text, "target": "b", "against": None}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n")
    assert read_queries(path) == [Query("x", text, "b")]


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TextTokenizer(Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2, "c": 3, " ": 4}, [])), "<s>")


@pytest.mark.parametrize("target", ["", " ", "\ud800"])
def test_a_question_without_a_target_is_refused_by_its_name(tokenizer: TextTokenizer, target: str) -> None:
    with pytest.raises(UserError, match="query q7 cannot be asked"):
        examples_of([Query("q7", "a", target)], tokenizer, None)


@pytest.mark.parametrize("against", ["b", " b"])
def test_a_question_against_its_own_target_is_refused(tokenizer: TextTokenizer, against: str) -> None:
    class Collector:
        class model:
            context = None
            places: ClassVar[dict[str, Path]] = {}

    with pytest.raises(UserError, match="q7 is held against its own target"):
        query_rows(Collector(), tokenizer, [Query("q7", "a", "b", against=against)])  # type: ignore[arg-type]
