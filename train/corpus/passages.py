"""Cutting documents into passages of bounded length, at sentence ends where possible, else between words."""

from __future__ import annotations

import numpy as np

from headwater.train.tokenizer import TextTokenizer

WORD_START = ("Ġ", "Ċ", "▁", " ", "\n")
"""How a token that begins a word (or line) begins: byte-level BPE's space and newline, SentencePiece's space."""
SENTENCE_END = (".", "!", "?", ";", "。", "！", "？", "Ċ", "\n")


class PassageCutter:
    """Cuts token lists; every token lands in exactly one piece, in order.

    Args:
        tokenizer: names the tokens that begin a word or end a sentence.
        max_tokens: longest passage, the beginning token included.
        min_tokens: no piece but a whole document is shorter than this.
    """

    def __init__(self, tokenizer: TextTokenizer, max_tokens: int, min_tokens: int) -> None:
        self.longest = max_tokens - 1  # room for the beginning token
        self.shortest = min(min_tokens, self.longest // 2)
        vocabulary = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
        self.starts_word = np.zeros(tokenizer.vocab_size, dtype=bool)
        self.ends_sentence = np.zeros(tokenizer.vocab_size, dtype=bool)
        for token, number in vocabulary.items():
            self.starts_word[number] = token.startswith(WORD_START)
            self.ends_sentence[number] = token.rstrip("\"')”’").endswith(SENTENCE_END)

    def cuts(self, tokens: np.ndarray) -> np.ndarray:
        """Where pieces begin and end.

        Args:
            tokens: integers [n], without the beginning token.

        Returns:
            int64 [pieces + 1], from 0 to n; each step is at most `max_tokens - 1`.
        """
        total = len(tokens)
        if total <= self.longest:
            return np.array([0, total] if total else [0], dtype=np.int64)
        word = np.zeros(total + 1, dtype=bool)
        word[1:total] = self.starts_word[tokens[1:]]
        sentence = word.copy()
        sentence[1:total] &= self.ends_sentence[tokens[:-1]]
        cuts = [0]
        while total - cuts[-1] > self.longest:
            begin = cuts[-1]
            # The rest must not be left shorter than `shortest`; at least half a passage is taken, so pieces stay few.
            last = min(begin + self.longest, total - self.shortest)
            first = min(begin + max(self.longest // 2, self.shortest), last)
            cuts.append(self._cut(sentence, word, first, last))
        return np.array([*cuts, total], dtype=np.int64)

    @staticmethod
    def _cut(sentence: np.ndarray, word: np.ndarray, first: int, last: int) -> int:
        for boundary in (sentence, word):
            places = np.flatnonzero(boundary[first : last + 1])
            if len(places):
                return first + int(places[-1])
        return last
