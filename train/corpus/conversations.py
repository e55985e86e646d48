"""Conversations as documents: rendered with a model's chat template, with the places of what the assistant says."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.artifacts import read_json

Spans = tuple[tuple[int, int], ...]
"""Ranges [start, stop) of characters of a text, rising, apart from each other."""

TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")
"""Where a model's directory has its chat template, the first before the second."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CONTROL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja chat template.

    Attributes:
        text: the template.
        tokens: the names of control tokens that it may ask for (bos_token, eos_token), by their Jinja name.
    """

    text: str
    tokens: tuple[tuple[str, str], ...] = ()

    def render(self, messages: Sequence[dict[str, Any]]) -> tuple[str, Spans]:
        """The conversation as the model sees it, without the token that begins a text, and the spans that the assistant
        says: those of the template's own `{% generation %}` blocks if it has them, else what each of its messages adds
        to the prompt that asks for it.

        Raises:
            UserError: the template refuses the conversation, or the assistant's words cannot be told apart in it.
        """
        marked = bool(_GENERATION.search(self.text))
        text, spans = self._rendered(messages, marked=marked)
        if not marked:
            spans = self._spans(text, messages)
        cut = len(self.begin) if text.startswith(self.begin) else 0
        moved = [(max(start - cut, 0), stop - cut) for start, stop in spans if stop > max(start, cut)]
        return text[cut:], tuple(moved)

    def prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        """The conversation so far and what asks the assistant to speak, without the token that begins a text.

        Raises:
            UserError: the template refuses the conversation.
        """
        return self._rendered(messages, asks=True)[0].removeprefix(self.begin)

    @property
    def begin(self) -> str:
        """The token that begins a text."""
        return dict(self.tokens).get("bos_token", "")

    def _spans(self, text: str, messages: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
        spans = []
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            asked, _ = self._rendered(messages[:number], asks=True)
            answered, _ = self._rendered(messages[: number + 1])
            if not (text.startswith(answered) and answered.startswith(asked)):
                raise UserError(
                    "the chat template writes earlier turns otherwise once later ones are there",
                    got=f"at message {number}: {text[: len(answered)][-60:]!r}, and alone {answered[-60:]!r}",
                    expected="a template that goes on where it stopped, or one with {% generation %} blocks",
                    fix="give another chat_template, or render the text yourself and give spans (spans_field)",
                )
            spans.append((len(asked), len(answered)))
        return spans

    def _rendered(
        self, messages: Sequence[dict[str, Any]], *, asks: bool = False, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            render: Any = render_jinja_template
            texts, spans = render(
                [list(messages)],
                chat_template=self.text,
                add_generation_prompt=asks,
                return_assistant_tokens_mask=marked,
                **dict(self.tokens),
            )
        except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "the chat template refuses a conversation",
                got=f"{type(error).__name__}: {error}",
                expected="messages such as {role: user, content: ...} in the order that it knows",
                fix="correct the messages, or chat_template",
            ) from None
        return texts[0], spans[0] if spans else []


def messages_of(value: Any) -> list[dict[str, Any]]:
    """A conversation as it stands in a record.

    Raises:
        ValueError: it is none; the error says why.
    """
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} in place of a list of messages")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} has no role")
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise ValueError(f"message {number} ({message['role']}) has {kind} for its content: text alone is read")
    return value


def spans_of(value: Any, length: int) -> Spans:
    """Spans as they stand in a record: a list of [start, stop) in characters of a text of this length.

    Raises:
        ValueError: they are none; the error says why.
    """
    spans: list[tuple[int, int]] = []
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} in place of a list of [start, stop]")
    for pair in value:
        whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(each) is int for each in pair)
        if not whole or not 0 <= pair[0] < pair[1] <= length:
            raise ValueError(f"{pair} is no [start, stop) within {length} characters")
        if spans and pair[0] < spans[-1][1]:
            raise ValueError(f"{pair} begins before {list(spans[-1])} ends")
        spans.append((pair[0], pair[1]))
    return tuple(spans)


@functools.lru_cache(maxsize=8)
def read_template(path: str) -> ChatTemplate:
    """The chat template of a file, or of a model's directory.

    Args:
        path: a Jinja file, a tokenizer_config.json, or a directory with `TEMPLATE_FILES`.

    Raises:
        MissingError: there is none.
        CorruptError: tokenizer_config.json cannot be read.
    """
    place = Path(path)
    found = [place / name for name in TEMPLATE_FILES if (place / name).is_file()] if place.is_dir() else [place]
    for file in found:
        config = file if file.suffix == ".json" else file.with_name("tokenizer_config.json")
        settings = read_json(config) if config.is_file() else {}
        if not isinstance(settings, dict):
            raise CorruptError(f"{config} is not a tokenizer's configuration", got=type(settings).__name__)
        text = settings.get("chat_template") if file.suffix == ".json" else _text(file)
        if isinstance(text, list):  # several under names
            text = next((each.get("template") for each in text if each.get("name") == "default"), None)
        if isinstance(text, str):
            return ChatTemplate(text, tuple(_tokens(settings)))
    raise MissingError(
        f"{path} has no chat template",
        expected=f"a Jinja file, or a directory with one in {' or '.join(TEMPLATE_FILES)}",
        fix="give chat_template the model's own, or the text itself under text_field with spans_field",
    )


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptError(f"the chat template {file} cannot be read", got=error, fix="restore the file") from None


def _tokens(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Control tokens that templates ask for, by name; a configuration has them as text, or with their flags."""
    tokens = []
    for name in _CONTROL:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens.append((name, value))
    return tokens
