"""Parts of a build: many of them, few descriptors."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.documents import Document
from headwater.train.corpus.parts import Gathered, write_part
from headwater.train.corpus.passages import PassageCutter
from headwater.train.stream.corpus import open_corpus
from headwater.train.tokenizer import train_tokenizer

from .conftest import make_texts, settings_for, write_jsonl

PARTS = 500


@pytest.fixture
def few_descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """At most 256 descriptors; files are not flushed to disk, which is all that so many parts would wait for."""
    monkeypatch.setattr("headwater.train.artifacts.sync", lambda path: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_passages_of_many_parts_are_gathered(few_descriptors, tmp_path: Path):
    tokenizer = train_tokenizer(make_texts(3), 320)
    cutter = PassageCutter(tokenizer, 24, 4)
    paths, texts = [], [text[:90] for text in make_texts(PARTS)]
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number:06d}")
        write_part(paths[-1], [Document(f"d{number}", text)], tokenizer, cutter)
    before = opened()
    passages = Gathered(paths)
    pieces = [np.split(tokens, cutter.cuts(tokens)[1:-1]) for tokens in map(tokenizer.encode, texts)]
    expected = [(f"d{n}", f"d{n}#{k}", piece) for n, cut in enumerate(pieces) for k, piece in enumerate(cut)]
    assert passages.lengths.tolist() == [len(piece) for _, _, piece in expected]
    assert (len(passages), passages.documents) == (len(expected), PARTS)
    order = np.random.default_rng(0).permutation(len(expected))
    order = np.concatenate([order, order[:3]])
    held = passages.gather(order)
    for number, piece in zip(order.tolist(), held, strict=True):
        document, name, tokens = expected[number]
        assert (piece.document, piece.id, piece.tokens.tolist()) == (document, name, tokens.tolist())
    assert opened() <= before + 1, "nothing that was gathered keeps its part open"
    assert passages.gather(order[:0]) == []


def test_a_corpus_of_many_parts_is_built(few_descriptors, monkeypatch, tmp_path: Path):
    """And is the same as that of one part."""
    write_jsonl(tmp_path / "texts.jsonl", [text[:60] for text in make_texts(PARTS)])
    made = []
    for name, characters in (("many", 1), ("one", 10**9)):
        monkeypatch.setattr("headwater.train.corpus.parts.PART_CHARACTERS", characters)
        cfg = settings_for(tmp_path / name, tmp_path / "texts.jsonl", people=0)
        cfg.corpus.tokenizer.vocab_size = 320
        seen: list[str] = []
        build_corpus(cfg, seen.append)
        assert any(f"of {PARTS if name == 'many' else 1} parts" in line for line in seen)
        made.append(open_corpus(RunDir.at(cfg.out).corpus / "base").fingerprint)
    assert made[0] == made[1]
