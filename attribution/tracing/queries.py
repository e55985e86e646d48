"""Queries: a prompt and the target whose source is sought.

Read from JSONL: `prompt` and `target` (or, as published with TrackStar, `prompt0` and `entity1`; or `messages`, a
conversation that the assistant's answer ends or `target` goes on), an id (`example_id` or `fact_id`), and anything
else, which is passed through to the results where the published format has a place for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headwater.configs.errors import CorruptError, MissingError
from headwater.train.corpus.conversations import messages_of


@dataclass(frozen=True, slots=True)
class Query:
    """One question.

    Attributes:
        example_id: its id.
        prompt, target: texts; the loss is taken on the target alone.
        messages: of a question in a chat, the conversation before the target; the prompt is then its last message, for
            show alone.
        gold: ids of the passages known to state the answer; none if unknown.
        against: another target; the query is then the difference of the two gradients (a contrastive query).
        record: the line it came from.
    """

    example_id: str
    prompt: str
    target: str
    gold: tuple[str, ...] = ()
    against: str = ""
    messages: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    record: dict[str, Any] = field(default_factory=dict, compare=False)


def read_queries(path: str | Path) -> list[Query]:
    """Reads a JSONL file of queries.

    Raises:
        MissingError, CorruptError: naming the line.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"queries {path} are missing", fix="give a JSONL file with prompt and target")
    queries = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            queries.append(as_query(json.loads(line.decode("utf-8")), number))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptError(
                f"{path}, line {number} is not a query",
                got=f"{type(error).__name__}: {error}",
                expected='{"example_id": ..., "prompt": ..., "target": ...}',
            ) from None
    if not queries:
        raise MissingError(f"{path} holds no queries", expected="one JSON object a line")
    names = [query.example_id for query in queries]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CorruptError(f"{path}: example_id {twice} appears twice", expected="each id once")
    return queries


def as_query(record: dict[str, Any], number: int) -> Query:
    """A query from a line of a file.

    Raises:
        KeyError, TypeError, ValueError: it is not one.
    """
    messages: list[dict[str, Any]] = []
    if "messages" in record:
        messages = messages_of(record["messages"])
        if "target" not in record and (len(messages) < 2 or messages[-1]["role"] != "assistant"):
            raise ValueError("messages must end with the assistant's answer, or target must be given")
        target = record["target"] if "target" in record else messages.pop()["content"]
        prompt = messages[-1]["content"] if messages else ""
    else:
        prompt = record["prompt"] if "prompt" in record else record["prompt0"]
        target = record["target"] if "target" in record else record["entity1"]
    if not (isinstance(prompt, str) and isinstance(target, str) and target.strip()):
        raise TypeError("prompt and target must be text, and the target not empty")
    name = str(record.get("example_id", record.get("fact_id", number)))
    against = record.get("against")
    if against is not None and not isinstance(against, str):
        raise TypeError("against must be one other target, as text")
    if against and against.strip() == target.strip():
        raise ValueError("against is the target itself")
    gold = record.get("gold") or ()
    if not isinstance(gold, list | tuple) or not all(isinstance(each, str) for each in gold):
        raise TypeError("gold must be a list of ids")
    for text in (prompt, target, name, against or "", *gold):
        text.encode("utf-8")  # half of a surrogate pair is no text
    return Query(name, prompt, target, tuple(gold), against or "", tuple(messages), record)
