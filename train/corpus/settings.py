"""What of the stream can be configured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headwater.configs import section, setting
from headwater.configs.errors import Problem
from headwater.configs.sizes import bytes_of
from headwater.train.corpus.columns import OWN, is_column_name
from headwater.train.corpus.wordnet import COLUMNS, DIRECTORY, LEXICOGRAPHER_FILES
from headwater.train.facts.settings import FactsSettings


@dataclass(kw_only=True, slots=True)
class SourceSettings:
    """One source of documents."""

    kind: str = setting(
        "factbook",
        "What to read: the Factbook of the installed package, WordNet of Debian's package, or files at `path`.",
        choices=("factbook", "wordnet", "jsonl", "parquet", "huggingface", "text"),
    )
    path: str = setting(
        "",
        f"A file, or a directory whose files are read in order; unused by `factbook`; `wordnet`: empty is {DIRECTORY}.",
    )
    text_field: str = setting("text", "The field (JSONL) or column (Parquet, Hugging Face) with the text.")
    id_field: str = setting(
        "id", "The field or column with the document's id; file and line number where it is absent."
    )
    messages_field: str = setting(
        "", "The field with a conversation, a list of {role, content}, in place of a text: the assistant's turns count."
    )
    chat_template: str = setting(
        "", "A Jinja chat template, or a directory with one; empty takes that beside corpus.tokenizer.path."
    )
    spans_field: str = setting(
        "", "The field with the spans whose loss counts, [[start, stop], ...] in characters; all counts without it."
    )
    columns: list[str] = setting(
        [], "Further fields or columns that are kept with each passage: what a search can be narrowed by (`where`)."
    )
    lexicographer_files: list[str] = setting(
        [], "Of `wordnet`: read these files of it, such as noun.location; empty: all.", choices=LEXICOGRAPHER_FILES
    )
    documents: int = setting(0, "Take this many documents, chosen by the seed; 0 takes all.", minimum=0)
    share: float = setting(
        1.0, "Take this share of the documents, drawn by the seed, before `documents` are chosen.", above=0, maximum=1
    )
    weight: float = setting(1.0, "How often a sequence of this source is seen, relative to the other sources.", above=0)

    def problems(self) -> Iterator[Problem]:
        if self.kind not in ("factbook", "wordnet") and not self.path:
            yield Problem("path", self.path, f"the path of the {self.kind} files")
        for name in ("messages_field", "spans_field"):
            if getattr(self, name) and self.kind in ("factbook", "wordnet", "text"):
                yield Problem(name, getattr(self, name), f"empty for {self.kind}, which has no fields")
        if self.columns and self.kind in ("factbook", "text"):
            yield Problem("columns", self.columns, f"empty for {self.kind}, which has no fields")
        if wrong := [name for name in self.columns if not is_column_name(name) or self.columns.count(name) > 1]:
            expected = f"names, each once, that are no words of Python nor any of {', '.join(OWN)}"
            yield Problem("columns", wrong, expected)
        if self.kind == "wordnet" and (wrong := [name for name in self.columns if name not in COLUMNS]):
            yield Problem("columns", wrong, f"some of {', '.join(COLUMNS)}")
        if self.lexicographer_files and self.kind != "wordnet":
            yield Problem("lexicographer_files", self.lexicographer_files, f"empty for {self.kind}")
        if self.messages_field and self.spans_field:
            yield Problem("spans_field", self.spans_field, "empty where messages_field is given")

    @property
    def root(self) -> Path:
        """Where its files are: what it reads is named as seen from here."""
        return Path(self.path or (DIRECTORY if self.kind == "wordnet" else ""))

    @property
    def masked(self) -> bool:
        """Whether some of its tokens may carry no loss."""
        return bool(self.messages_field or self.spans_field)


SAMPLE_BYTES = "1GB"
"""Text that a tokenizer is trained on."""


def size_problems(key: str, text: str) -> Iterator[Problem]:
    """Whether a setting is a size."""
    try:
        bytes_of(text)
    except ValueError:
        yield Problem(key, text, "bytes with their unit, for example 200GB")


@dataclass(kw_only=True, slots=True)
class TokenizerSettings:
    """The tokenizer: one that exists, or one trained on the corpus."""

    path: str = setting(
        "", "A tokenizer.json of Hugging Face `tokenizers`; empty trains a byte-level BPE on the corpus."
    )
    bos: str = setting("", "The token that begins every passage; empty takes the tokenizer's own.")
    eos: str = setting("", "The token of corpus.end_token; empty takes </s> or the like, or the one of `bos`.")
    vocab_size: int = setting(8192, "Vocabulary of a trained tokenizer; a multiple of 64.", minimum=320)
    sample: int = setting(
        0, "Train on this many documents of each source, chosen by the seed; 0 goes by sample_bytes.", minimum=0
    )
    sample_bytes: str = setting(
        SAMPLE_BYTES, "Train on about so much text at most, from all parts of the sources' files; empty takes all."
    )

    def problems(self) -> Iterator[Problem]:
        if self.vocab_size % 64:
            yield Problem("vocab_size", self.vocab_size, "a multiple of 64", f"try {-(-self.vocab_size // 64) * 64}")
        yield from size_problems("sample_bytes", self.sample_bytes)


@dataclass(kw_only=True, slots=True)
class CorpusSettings:
    """Documents, how they are cut into passages, and how passages are packed into sequences."""

    sources: list[SourceSettings] = setting([SourceSettings()], "Where the documents come from.")
    tokenizer: TokenizerSettings = section(TokenizerSettings)
    max_tokens: int = setting(64, "Longest passage in tokens, the beginning token included.", minimum=8)
    min_tokens: int = setting(12, "A document's tail shorter than this is not left as a passage of its own.", minimum=1)
    end_token: bool = setting(
        True, "Put a token after each document's last passage, so that the model learns where documents end."
    )
    begin_token: str = setting(
        "every",
        "What the beginning token is put before: every passage, or a document's first alone.",
        choices=("every", "first"),
    )
    seq_len: int = setting(256, "Tokens of a packed sequence.", minimum=8)
    held_out: float = setting(
        0.0,
        "Share of the documents, drawn by the seed, that is never trained on: callbacks.validation reads it.",
        minimum=0,
        below=1,
    )
    passages: int = setting(0, "Take this many passages of all, chosen by the seed; 0 takes all.", minimum=0)
    shard_tokens: int = setting(8_000_000, "Tokens of a shard, about.", minimum=1024)
    prebuilt: str = setting(
        "",
        "A corpus built before (its directory, or s3://...) to take instead; sources and tokenizer are not read then.",
    )
    remote: str = setting("", "Where the shards are kept: s3://, gs://, ...; empty keeps them in the run directory.")
    cache: str = setting("", "Where shards from `remote` are put on this machine; empty uses the run directory.")
    cache_bytes: str = setting(
        "",
        "What fetched shards may take of the disk, for example 200GB: those behind the window go; empty keeps all.",
    )
    window: int = setting(
        0, "Shards visited at a time, for a corpus larger than a machine's disk; 0 visits all in one order.", minimum=0
    )
    workers: int = setting(1, "Processes that build the corpus; the result does not depend on it.", minimum=1)
    engine: str = setting(
        "processes", "What runs the workers: processes of this machine, or a Ray cluster.", choices=("processes", "ray")
    )
    seed: int = setting(
        0, "Seed of what is chosen or held out, and of how passages are shuffled and packed into sequences.", minimum=0
    )

    def problems(self) -> Iterator[Problem]:
        if self.max_tokens > self.seq_len:
            yield Problem("max_tokens", self.max_tokens, f"at most seq_len = {self.seq_len}")
        if self.min_tokens * 2 > self.max_tokens:
            yield Problem("min_tokens", self.min_tokens, f"at most half of max_tokens = {self.max_tokens}")
        if not self.sources:
            yield Problem("sources", self.sources, "at least one source")
        yield from size_problems("cache_bytes", self.cache_bytes)
        if self.cache_bytes and not self.window:
            fix = "set corpus.window: without one, every shard of the corpus is in use at any time"
            yield Problem("cache_bytes", self.cache_bytes, "empty where corpus.window is 0", fix)
        if self.held_out and self.prebuilt:
            yield Problem("held_out", self.held_out, "0 with prebuilt, which is taken whole")
        if any(source.messages_field for source in self.sources) and not self.tokenizer.path and not self.prebuilt:
            fix = "give the tokenizer whose control tokens the chat template writes"
            yield Problem("tokenizer.path", "", "a tokenizer.json where a source has messages_field", fix)

    @property
    def masked(self) -> bool:
        """Whether some tokens of some source may carry no loss."""
        return any(source.masked for source in self.sources)


class Steps(Protocol):
    """How long a training is: injections are laid out over it."""

    steps: int


class BuildSettings(Protocol):
    """What a build reads of a run's settings (`train.settings.PretrainSettings`)."""

    out: str
    seed: int
    corpus: CorpusSettings
    facts: FactsSettings

    @property
    def train(self) -> Steps: ...
