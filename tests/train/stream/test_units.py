"""Sources divided among processes, and samples of them."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.configs.errors import CorruptError
from headwater.train.artifacts import RunDir
from headwater.train.corpus import files
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.documents import read_documents
from headwater.train.corpus.files import units_of
from headwater.train.corpus.parts import chosen_documents
from headwater.train.corpus.sample import tokenizer_texts
from headwater.train.corpus.settings import CorpusSettings, SourceSettings
from headwater.train.stream.corpus import open_corpus

from .conftest import make_texts, settings_for, write_jsonl


def write_source(kind: str, directory: Path) -> SourceSettings:
    """Two files and more of some 40 kB each, whose records have no ids of their own."""
    texts = make_texts(120)
    if kind == "text":
        for number, text in enumerate(texts):
            (directory / f"{number:03d}.txt").write_text(text)
    for half, mine in enumerate((texts[:60], texts[60:])):
        if kind == "parquet":
            pq.write_table(pa.table({"text": mine}), directory / f"{half}.parquet", row_group_size=7)
        elif kind != "text":
            end = "\r\n" if half else "\n"
            lines = [json.dumps({"text": text}) + end * (1 + number % 3) for number, text in enumerate(mine)]
            data = "".join(lines).encode()
            if kind == "jsonl.gz":
                (directory / f"{half}.jsonl.gz").write_bytes(gzip.compress(data))
            else:
                (directory / f"{half}.jsonl").write_bytes(data.removesuffix(b"\n"))
    return SourceSettings(kind=kind.removesuffix(".gz"), path=str(directory))


@pytest.mark.parametrize(("kind", "least"), [("jsonl", 10), ("parquet", 10), ("text", 10), ("jsonl.gz", 2)])
def test_units_are_the_source_whatever_their_size(kind, least, tmp_path, monkeypatch):
    source = write_source(kind, tmp_path)
    whole = list(read_documents(source))
    assert len(whole) == 120
    assert len(units_of(source)) == 1
    monkeypatch.setattr(files, "UNIT_BYTES", 4000)
    units = units_of(source)
    assert len(units) >= least
    assert [document for unit in units for document in read_documents(source, unit)] == whole


def test_a_bad_line_in_the_middle_is_named_by_its_number(tmp_path, monkeypatch):
    source = write_source("jsonl", tmp_path)
    lines = (tmp_path / "0.jsonl").read_text().splitlines()
    lines[70] = "nonsense"
    (tmp_path / "0.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(files, "UNIT_BYTES", 4000)
    with pytest.raises(CorruptError, match=r"0.jsonl:71 is not JSON"):
        [document for unit in units_of(source) for document in read_documents(source, unit)]


def test_a_corpus_does_not_depend_on_the_units(built, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNIT_BYTES", 3000)
    cfg = settings_for(tmp_path / "run", Path(built.corpus.sources[0].path))
    seen: list[str] = []
    build_corpus(cfg, seen.append)
    assert sum("tokenising" in line for line in seen) > 5
    for name in ("manifest.json", "passages.parquet"):
        assert (RunDir.at(cfg.out).corpus / "base" / name).read_bytes() == (
            RunDir.at(built.out).corpus / "base" / name
        ).read_bytes()
    open_corpus(RunDir.at(cfg.out).corpus / "base").verify()


def test_a_share_is_drawn_by_the_seed_and_lies_in_a_larger_one(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "texts.jsonl", make_texts(600))

    def ids(share: float, seed: int = 0, documents: int = 0) -> list[str]:
        source = SourceSettings(kind="jsonl", path=str(tmp_path / "texts.jsonl"), share=share, documents=documents)
        return [document.id for document in chosen_documents(source, seed)]

    few, more = ids(0.2), ids(0.5)
    assert 80 < len(few) < 160
    assert 240 < len(more) < 360
    assert set(few) < set(more)
    assert few == sorted(few, key=lambda name: int(name.removeprefix("doc-")))
    assert ids(0.2, seed=1) != few
    assert set(ids(0.5, documents=50)) < set(more)
    monkeypatch.setattr(files, "UNIT_BYTES", 5000)
    assert ids(0.2) == few


def test_a_tokenizer_is_trained_on_so_much_text(tmp_path, monkeypatch):
    corpus = CorpusSettings()
    for name, count in (("a", 400), ("b", 100)):
        write_jsonl(tmp_path / f"{name}.jsonl", make_texts(count), prefix=name)
    corpus.sources = [SourceSettings(kind="jsonl", path=str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    everything = list(tokenizer_texts(corpus))
    assert len(everything) == 500
    monkeypatch.setattr(files, "UNIT_BYTES", 10_000)
    assert list(tokenizer_texts(corpus)) == everything
    corpus.tokenizer.sample_bytes = "100kB"
    sample = list(tokenizer_texts(corpus))
    longest = max(map(len, everything))
    assert 90_000 < sum(map(len, sample)) < 100_000 + 2 * longest < sum(map(len, everything)) / 3
    assert list(tokenizer_texts(corpus)) == sample
    corpus.seed = 1
    assert set(tokenizer_texts(corpus)) != set(sample)
    # From all over the first source: its larger part.
    places = sorted(everything.index(text) for text in sample)
    first = [place for place in places if place < 400]
    assert first[0] < 40
    assert first[-1] > 360
    assert max(b - a for a, b in itertools.pairwise(first)) < 30
