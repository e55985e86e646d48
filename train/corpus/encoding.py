"""Documents to tokens: text throughout, whatever it looks like, with the token that ends a document if wished."""

from __future__ import annotations

import numpy as np

from headwater.configs.errors import MismatchError
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.tokenizer import END_OF_TEXT, TextTokenizer

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
    inner = tokenizer.tokenizer
    before, inner.encode_special_tokens = inner.encode_special_tokens, True
    try:
        encoded = tokenizer.encode_batch(texts)
    finally:
        inner.encode_special_tokens = before
    if end is None:
        return encoded
    return [np.append(tokens, np.uint32(end)) if len(tokens) else tokens for tokens in encoded]
