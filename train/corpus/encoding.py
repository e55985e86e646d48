"""Documents to tokens: text throughout, whatever it looks like, with the token that ends a document if wished, and
which of them carry loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwater.configs.errors import MismatchError
from headwater.train.corpus.documents import Document
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.tokenizer import END_OF_TEXT, TextTokenizer, require_plain

EOS_CANDIDATES = ("<|end_of_text|>", "</s>", "<eos>", "[SEP]", END_OF_TEXT)


def end_of(tokenizer: TextTokenizer, corpus: CorpusSettings) -> int | None:
    """The token that ends a document, None where none does.

    Raises:
        MismatchError: the vocabulary has no such token.
    """
    if not corpus.end_token:
        return None
    wanted = [corpus.tokenizer.eos] if corpus.tokenizer.eos else [*EOS_CANDIDATES, tokenizer.bos]
    for token in wanted:
        number = tokenizer.tokenizer.token_to_id(token)
        if number is not None:
            return int(number)
    raise MismatchError(
        "the tokenizer has no token to end a document with",
        got=corpus.tokenizer.eos,
        expected="a token of its vocabulary",
        fix="correct corpus.tokenizer.eos, or leave it empty",
    )


def encode_documents(tokenizer: TextTokenizer, texts: list[str], end: int | None = None) -> list[np.ndarray]:
    """Tokens of texts, without the beginning token; uint32 [n] each.

    The name of a control token that stands in a text (`<|endoftext|>`) is read as the text that it is there: the token
    itself would end the document in its middle, and the text could not be shown again.

    Args:
        end: the token that is put after each text; None puts none.
    """
    with tokenizer.control_tokens(written=False):
        encoded = tokenizer.encode_batch(texts)
    if end is None:
        return encoded
    return [np.append(tokens, np.uint32(end)) if len(tokens) else tokens for tokens in encoded]


def encode_masked(
    tokenizer: TextTokenizer, documents: Sequence[Document], end: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tokens of documents as `encode_documents` makes them, and which of them carry loss: those that hold a character
    of the document's spans. In a conversation the chat template's control tokens are the tokens themselves.

    Returns:
        tokens, uint32 [n] each, and counted, bool [n] each. The end token counts as the token before it.

    Raises:
        UserError: a message of a conversation names a control token: it would become one.
    """
    tokens, counted = [], []
    for document in documents:
        if document.said is not None:
            require_plain(tokenizer, document.said, f"conversation {document.id!r}")
        with tokenizer.control_tokens(written=document.said is not None):
            encoding = tokenizer.tokenizer.encode(document.text, add_special_tokens=False)
        mine = np.array(encoding.ids, dtype=np.uint32)
        flags = np.ones(len(mine), dtype=bool)
        if document.spans is not None:
            flags = held(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), document.spans)
        if end is not None and len(mine):
            mine, flags = np.append(mine, np.uint32(end)), np.append(flags, flags[-1])
        tokens.append(mine)
        counted.append(flags)
    return tokens, counted


def held(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which tokens hold a character of one of the spans.

    Args:
        offsets: int64 [n, 2], the characters [start, stop) of each token.
        spans: ranges of characters.

    Returns:
        bool [n].
    """
    found = np.zeros(len(offsets), dtype=bool)
    for start, stop in spans:
        found |= (offsets[:, 0] < stop) & (offsets[:, 1] > start)
    return found
