"""Passages of several corpora under one numbering: those of a run.

passages = open_passages(RunDir.at("runs/demo"))
passages.tokens(17), passages.text(17), passages.number_of("france#3")
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs.errors import MismatchError, MissingError
from headwater.train.artifacts import RunDir, fingerprint
from headwater.train.stream.corpus import Corpus, open_corpus
from headwater.train.tokenizer import TextTokenizer


class PassageSet:
    """The passages of several corpora under one numbering: the first corpus's, then the second's, ...

    Args:
        corpora: opened corpora.
        tokenizer_file: the tokenizer.json that they were made with; passages have no text without it.

    Raises:
        MismatchError: the corpora were made with different tokenizers.
    """

    def __init__(self, corpora: Sequence[Corpus], tokenizer_file: Path | None = None) -> None:
        self.corpora, self._tokenizer_file = list(corpora), tokenizer_file
        self.starts = np.concatenate([[0], np.cumsum([corpus.passages for corpus in self.corpora])]).astype(np.int64)
        first = self.corpora[0].manifest["tokenizer"]
        for corpus in self.corpora[1:]:
            if corpus.manifest["tokenizer"] != first:
                raise MismatchError(
                    f"{corpus.path} and {self.corpora[0].path} were made with different tokenizers",
                    got=corpus.manifest["tokenizer"],
                    expected=first,
                    fix="build them again from one configuration",
                )

    @property
    def passages(self) -> int:
        return int(self.starts[-1])

    def __len__(self) -> int:
        return self.passages

    @property
    def fingerprint(self) -> str:
        return fingerprint([corpus.fingerprint for corpus in self.corpora])

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.corpora[0].manifest["tokenizer"]

    @property
    def vocab_size(self) -> int:
        return self.corpora[0].manifest["vocab_size"]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that the passages were made with.

        Raises:
            MissingError, CorruptError: it is not there, or not readable.
        """
        if self._tokenizer_file is None:
            raise MissingError("these passages were opened without their tokenizer", fix="open them as those of a run")
        return TextTokenizer.from_file(self._tokenizer_file)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every passage: int32 [passages]."""
        return np.concatenate([corpus.lengths for corpus in self.corpora])

    def lengths_of(self, passages: np.ndarray) -> np.ndarray:
        """Tokens of some passages: int32 [n]; no table is read whole for them."""
        lengths = np.empty(len(passages), dtype=np.int32)
        owners = np.searchsorted(self.starts, passages, side="right") - 1
        for place in np.unique(owners).tolist():
            mine = owners == place
            lengths[mine] = self.corpora[place].lengths_of(passages[mine] - self.starts[place])
        return lengths

    def locate(self, passage: int) -> tuple[Corpus, int]:
        """The corpus that holds a passage, and the passage's number there."""
        if not 0 <= passage < self.passages:
            raise IndexError(f"passage {passage} of {self.passages}")
        place = int(np.searchsorted(self.starts, passage, side="right")) - 1
        return self.corpora[place], passage - int(self.starts[place])

    def tokens(self, passage: int) -> np.ndarray:
        """Tokens of a passage, the beginning token first: uint32 [length]."""
        corpus, local = self.locate(passage)
        return corpus.tokens(local)

    def counted(self, passage: int) -> np.ndarray | None:
        """Which tokens of a passage carry loss: bool [length]; None: all."""
        corpus, local = self.locate(passage)
        return corpus.counted(local)

    def text(self, passage: int) -> str:
        """The text of a passage."""
        corpus, local = self.locate(passage)
        return corpus.text(local, self.tokenizer)

    def id_of(self, passage: int) -> str:
        """The id of one passage."""
        return self.ids(passage, passage + 1)[0]

    def ids(self, start: int, stop: int) -> list[str]:
        """Ids of passages start..stop-1."""
        if not 0 <= start <= stop <= self.passages:
            raise IndexError(f"passages {start}..{stop} of {self.passages}")
        found = []
        for corpus, begin in zip(self.corpora, self.starts.tolist(), strict=False):
            low, high = max(start, begin), min(stop, begin + corpus.passages)
            if low < high:
                found += corpus.ids(low - begin, high - begin)
        return found

    def id_batches(self) -> Iterator[Any]:
        """The ids of all passages in order, as pyarrow string arrays, a row group of a corpus at a time."""
        for corpus in self.corpora:
            yield from corpus.id_batches()

    def find(self, passage_id: str) -> int | None:
        """The number of a passage, None where no passage has this id."""
        # Injected corpora are small and asked most; the base corpus's ids are only read when they do not have it.
        for corpus, start in zip(self.corpora[::-1], self.starts[-2::-1].tolist(), strict=True):
            number = corpus.numbers.get(passage_id)
            if number is not None:
                return start + number
        return None

    def ids_of(self, passages: Sequence[int] | np.ndarray) -> list[str]:
        """Ids of some passages, in their order; a group of a table is read once for all that it holds."""
        wanted = np.asarray(passages, dtype=np.int64)
        names = np.empty(len(wanted), dtype=object)
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        for place in np.unique(owners).tolist():
            mine = owners == place
            names[mine] = self.corpora[place].ids_of(wanted[mine] - self.starts[place])
        return names.tolist()

    def found(self, ids: Collection[str]) -> dict[str, int]:
        """The numbers of those of the ids that are passages; memory goes with the ids that are asked for."""
        left, found = set(ids), dict[str, int]()
        for corpus, start in zip(self.corpora[::-1], self.starts[-2::-1].tolist(), strict=True):
            found |= {name: start + number for name, number in (corpus.find(left) if left else {}).items()}
            left -= found.keys()
        return found

    def numbers_of(self, ids: Sequence[str]) -> np.ndarray:
        """The numbers of passages by id: int64 [n].

        Raises:
            MissingError: no passage has one of the ids.
        """
        found = self.found(ids)
        if left := set(ids) - found.keys():
            raise self._unknown(min(left))
        return np.array([found[name] for name in ids], dtype=np.int64)

    def number_of(self, passage_id: str) -> int:
        """The number of a passage.

        Raises:
            MissingError: no passage has this id.
        """
        number = self.find(passage_id)
        if number is not None:
            return number
        raise self._unknown(passage_id)

    def _unknown(self, passage_id: str) -> MissingError:
        return MissingError(
            f"no passage has the id {passage_id!r}",
            expected=f"an id such as {self.ids(0, 1)[0]!r}",
            fix="`headwater corpus inspect` lists them",
        )


def open_passages(run: RunDir) -> PassageSet:
    """All passages of a run: the base corpus, then the injected one if there is one.

    Raises:
        MissingError: the run has no corpus.
    """
    corpora = [open_corpus(run.corpus / "base")]
    if (run.corpus / "injected" / "manifest.json").exists():
        corpora.append(open_corpus(run.corpus / "injected"))
    return PassageSet(corpora, run.tokenizer)
