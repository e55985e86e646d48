"""The tokenizer: a byte-level BPE trained on the corpus, or any `tokenizer.json` of Hugging Face `tokenizers`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import fingerprint, write_bytes

END_OF_TEXT = "<|endoftext|>"
"""Begins every passage of a tokenizer trained here; its id is 0."""

_WITHOUT_SPACES = (
    ("\u0e00", "\u0fff"),  # Thai, Lao, Tibetan
    ("\u1000", "\u109f"),  # Burmese
    ("\u1780", "\u17ff"),  # Khmer
    ("\u2e80", "\u31ff"),  # Chinese radicals and punctuation, Japanese syllables
    ("\u3400", "\u9fff"),  # Chinese characters
    ("\uf900", "\ufaff"),
    ("\uff00", "\uff9f"),  # full width forms, narrow Japanese syllables
    ("\U00020000", "\U0003ffff"),
)
"""Ranges of characters of scripts that put no space between words."""

BOS_CANDIDATES = (END_OF_TEXT, "<|begin_of_text|>", "<s>", "<bos>", "[CLS]")
TRIAL = "The river (1,250 km) ran to Málaga, 東京.\n"
"""What a tokenizer is tried on when it is opened."""

VOCABULARY_MULTIPLE = 64


class TextTokenizer:
    """A tokenizer and the token that begins a passage.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; its own post-processor is never applied, and control tokens that are
            written in a text are text.
        bos: the token that begins a passage; empty takes the one that the tokenizer itself puts before a text, or the
            first of `BOS_CANDIDATES` that its vocabulary has.

    Raises:
        MismatchError: the vocabulary has no such token.
    """

    def __init__(self, tokenizer: Tokenizer, bos: str = "") -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        own = [tokenizer.id_to_token(number) for number in tokenizer.encode("").ids[:1]]
        candidates = [bos] if bos else [*own, *BOS_CANDIDATES]
        found = [token for token in candidates if tokenizer.token_to_id(token) is not None]
        if not found:
            raise MismatchError(
                "the tokenizer has no token to begin a passage with",
                got=bos or f"none of {', '.join(BOS_CANDIDATES)}",
                expected="a token of its vocabulary",
                fix="set corpus.tokenizer.bos",
            )
        self.bos = found[0]
        self.bos_id: int = tokenizer.token_to_id(self.bos)
        used = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.vocab_size = -(-used // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        """Rows of the embedding: the vocabulary rounded up to a multiple of 64."""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], bos: str = "") -> TextTokenizer:
        """Reads a tokenizer.json.

        Raises:
            MissingError: no file is there.
            CorruptError: the file is not a tokenizer.
        """
        if not Path(path).is_file():
            raise MissingError(f"tokenizer {path} is missing", fix="build the corpus first: `headwater corpus CONFIG`")
        try:
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.decode(tokenizer.encode(TRIAL).ids, skip_special_tokens=False)
        except BaseException as error:  # the library raises bare Exception, and panics
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise CorruptError(f"{path} is not a tokenizer.json", got=error, fix="restore it") from None
        return cls(tokenizer, bos)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a tokenizer.json that puts the beginning token before a text: whoever reads it knows the token."""
        if self.tokenizer.encode("").ids != [self.bos_id]:
            self.tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, self.bos_id)]
            )
        write_bytes(path, self.tokenizer.to_str(pretty=True).encode())

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.tokenizer.to_str(), self.bos])

    def encode(self, text: str) -> np.ndarray:
        """Token numbers of a text, without any special token: int64 [n]."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The same for several texts, in parallel threads where the process may use them: uint32 [n] each."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    @contextmanager
    def control_tokens(self, *, written: bool) -> Iterator[None]:
        """Within, the name of a control token in a text becomes the token (`written`), or stays text."""
        before, self.tokenizer.encode_special_tokens = self.tokenizer.encode_special_tokens, not written
        try:
            yield
        finally:
            self.tokenizer.encode_special_tokens = before

    def decode(self, tokens: np.ndarray | list[int]) -> str:
        """The text of tokens; the token that begins a passage is left out."""
        return self.tokenizer.decode(
            [int(token) for token in tokens if token != self.bos_id], skip_special_tokens=False
        )

    def pieces(self, tokens: np.ndarray | list[int]) -> list[str]:
        """The text of each token by itself (part of a character shows as a replacement character)."""
        return [self.tokenizer.decode([int(token)], skip_special_tokens=False) for token in tokens]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Trains a byte-level BPE; the same texts give the same tokenizer.

    Args:
        texts: what to learn merges from.
        vocab_size: size of the vocabulary, `<|endoftext|>` (id 0) and the 256 bytes included. Fewer where the texts
            run out of pairs.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer, END_OF_TEXT)


def require_plain(tokenizer: TextTokenizer, texts: Sequence[str], whose: str) -> None:
    """Refuses texts in which somebody says the name of a control token, where a chat template writes such tokens.

    Raises:
        UserError: naming the token and `whose` text it stands in.
    """
    names = [each.content for each in tokenizer.tokenizer.get_added_tokens_decoder().values() if each.special]
    spoken = next((name for text in texts for name in names if name in text), None)
    if spoken is not None:
        raise UserError(
            f"a message of {whose} names the control token {spoken!r}",
            expected="messages without control tokens: the chat template alone may write them",
            fix="take it out of the message, or leave the conversation out",
        )


def encode_query(
    tokenizer: TextTokenizer, prompt: str, target: str, *, rendered: bool = False
) -> tuple[np.ndarray, int]:
    """A prompt and what should follow it, tokenized together, as they would stand in a document.

    Args:
        prompt: text.
        target: the continuation. One space is put between, unless one of the two has whitespace there, the prompt is
            empty, or either side of the boundary is written without spaces (Chinese, Japanese, Thai, ...).
        rendered: the prompt was made by a chat template: its control tokens are the tokens, and no space is put
            between.

    Returns:
        tokens: int64 [n], the beginning token, the prompt's tokens, the target's tokens.
        target_start: place of the target's first token: the first that holds a character of it, or of the space.

    Raises:
        UserError: the target is empty, or the tokenizer makes nothing of it.
    """
    text = prompt + (" " if not rendered and needs_space(prompt, target) else "") + target
    with tokenizer.control_tokens(written=rendered):
        encoding = tokenizer.tokenizer.encode(text, add_special_tokens=False)
    first = next((n for n, (_, end) in enumerate(encoding.offsets) if end > len(prompt)), len(encoding.ids))
    if not target or first == len(encoding.ids):
        raise UserError(
            "the target of a query has no tokens", got=repr(target), expected="what should follow the prompt"
        )
    return np.array([tokenizer.bos_id, *encoding.ids], dtype=np.int64), 1 + first


def needs_space(prompt: str, target: str) -> bool:
    """Whether a space has to be put between a prompt and what follows it."""
    if not prompt or not target or prompt[-1].isspace() or target[0].isspace():
        return False
    return not any(first <= char <= last for char in (prompt[-1], target[0]) for first, last in _WITHOUT_SPACES)
