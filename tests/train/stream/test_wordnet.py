"""WordNet as documents: a hand-made one, and Debian's where it is installed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from headwater.configs.errors import ConfigError, CorruptError, MissingError
from headwater.configs.loader import load_config
from headwater.train.corpus.documents import Document, describe_source, read_documents
from headwater.train.corpus.settings import SourceSettings
from headwater.train.corpus.wordnet import DIRECTORY, LEXICOGRAPHER_FILES

LICENCE = """\
  1 This software and database is being provided to you, the LICENSEE, by  
  2 WordNet 3.0 Copyright 2006 by Princeton University | All rights reserved.  
"""
TINY = {
    "noun": [
        "00000123 15 n 03 Tokyo 0 Yedo 0 capital_of_Japan 0 002 @i 08691669 n 0000 #p 08920924 n 0000 "
        "| the capital of Japan; the economic center  ",
        "00000456 27 n 03 gold 0 Au 0 atomic_number_79 0 001 @ 14627081 n 0000 | a soft yellow metallic element",
        # Eleven words, counted in hexadecimal.
        "00000789 13 n 0b " + " ".join(f"w{n} 0" for n in range(11)) + " 000 | many words  ",
    ],
    "verb": [
        '00000123 30 v 02 gild 0 engild 1 001 @ 00267522 v 0000 01 + 08 00 | decorate with gold | leaf; "gild a frame"'
    ],
    "adj": [
        '00000123 00 a 02 able(p) 0 fit(ip) 2 001 ! 00002098 a 0101 | having means; "able to swim"; "it\'s true"',
        "00000456 00 s 01 galore(ip) 0 001 & 00013887 a 0000 | in great numbers; `cakes galore'",
        "00000789 01 a 01 (a)synchronous 0 000 |  ",
    ],
    "adv": ["00000123 02 r 01 a_cappella 0 000 | without accompaniment\r"],
}


def write_tiny(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    for part, lines in TINY.items():
        (directory / f"data.{part}").write_text(LICENCE + "\n".join(lines) + "\n\n", newline="")
    return directory


def read(path: Path | str = "", **settings: object) -> list[Document]:
    return list(read_documents(SourceSettings(kind="wordnet", path=str(path), **settings)))  # type: ignore[arg-type]


def test_synsets_are_documents(tmp_path):
    found = [(document.id, document.text) for document in read(write_tiny(tmp_path))]
    assert found == [
        ("00000123-n", "Tokyo, Yedo, capital of Japan: the capital of Japan; the economic center"),
        ("00000456-n", "gold, Au, atomic number 79: a soft yellow metallic element"),
        ("00000789-n", "w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10: many words"),
        ("00000123-v", 'gild, engild: decorate with gold | leaf; "gild a frame"'),
        ("00000123-a", 'able, fit: having means; "able to swim"; "it\'s true"'),
        ("00000456-s", "galore: in great numbers; `cakes galore'"),
        ("00000789-a", "(a)synchronous"),
        ("00000123-r", "a cappella: without accompaniment"),
    ]


def test_columns_and_lexicographer_files(tmp_path):
    write_tiny(tmp_path)
    names = ["headword", "lemmas", "part", "file"]
    tokyo, *_, galore, _, _ = read(tmp_path, columns=names)
    assert tokyo.columns == dict(
        zip(names, ("Tokyo", "Tokyo, Yedo, capital of Japan", "noun", "noun.location"), strict=True)
    )
    assert galore.columns == dict(zip(names, ("galore", "galore", "adjective", "adj.all"), strict=True))
    chosen = read(tmp_path, lexicographer_files=["noun.substance", "adv.all"], columns=["headword"])
    assert [document.columns for document in chosen] == [{"headword": "gold"}, {"headword": "a cappella"}]


def test_lines_that_are_no_synsets_are_named(tmp_path):
    write_tiny(tmp_path)
    good = TINY["verb"][0]
    wrong = {
        "no gloss": good.partition("|")[0],
        "too few words": good.replace(" 02 gild", " ff gild"),
        "no words": "00000123 30 v 00 000 | nothing",
        "count": good.replace(" 02 gild", " xx gild"),
        "type": good.replace(" v 02", " x 02"),
        "file": good.replace(" 30 v", " 45 v"),
        "offset": good.replace("00000123", "123"),
        "prose": "It was a dark night | and so on",
    }
    for what, line in wrong.items():
        (tmp_path / "data.verb").write_text(f"{LICENCE}{good}\n{line}\n")
        with pytest.raises(CorruptError, match=r"data\.verb:4 is not a synset") as caught:
            read(tmp_path)
        assert "wordnet-base" in str(caught.value.fix), what
    (tmp_path / "data.verb").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptError, match=r"data\.verb is not UTF-8"):
        read(tmp_path)


def test_a_wordnet_that_is_not_there_is_one_error(tmp_path):
    write_tiny(tmp_path)
    (tmp_path / "data.adj").unlink()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "data.noun"):
        source = SourceSettings(kind="wordnet", path=str(path))
        for reading in (describe_source, lambda source: list(read_documents(source))):
            with pytest.raises(MissingError, match=f"WordNet is not at {re.escape(str(path))}") as caught:
                reading(source)
            assert caught.value.fix is not None
            assert "apt-get install wordnet-base" in caught.value.fix
            assert "data.adj" in str(caught.value.got)


def test_settings_that_cannot_be_are_refused():
    for overrides, named in (
        (["kind=wordnet", "columns=[word]"], "headword, lemmas, part, file"),
        (["kind=wordnet", "spans_field=spans"], "spans_field"),
        (["kind=wordnet", "lexicographer_files=[noun.nothing]"], "noun.location"),
        (["kind=factbook", "lexicographer_files=[noun.location]"], "empty for factbook"),
    ):
        with pytest.raises(ConfigError, match=re.escape(named)):
            load_config(SourceSettings, None, overrides)


def test_it_lies_anywhere_and_is_told_from_another(tmp_path):
    """A source's description, by which a corpus is known, names files as seen from their directory."""
    first, second = write_tiny(tmp_path / "a"), write_tiny(tmp_path / "b")
    described = [describe_source(SourceSettings(kind="wordnet", path=str(path))) for path in (first, second)]
    assert [each.pop("path") for each in described] == [str(first), str(second)]
    assert described[0] == described[1]
    assert [name for name, *_ in described[0]["files"]] == ["data.noun", "data.verb", "data.adj", "data.adv"]
    (second / "data.adv").write_text((second / "data.adv").read_text().replace("accompaniment", "instruments"))
    assert describe_source(SourceSettings(kind="wordnet", path=str(second)))["files"] != described[0]["files"]


@pytest.mark.skipif(not Path(DIRECTORY).is_dir(), reason="wordnet-base is not installed")
def test_debians_wordnet_is_whole():
    documents = read(columns=["part", "file", "headword"])
    assert len(documents) == len({document.id for document in documents}) == 117_659
    parts = Counter(document.columns["part"] for document in documents)
    assert parts == {"noun": 82_115, "verb": 13_767, "adjective": 18_156, "adverb": 3_621}
    files = Counter(document.columns["file"] for document in documents)
    assert set(files) == set(LEXICOGRAPHER_FILES)
    assert (files["noun.location"], files["noun.substance"], files["noun.Tops"]) == (3209, 2983, 51)
    assert 11.3e6 < sum(len(document.text.encode()) for document in documents) < 11.5e6
    found = {document.id: document.text for document in documents}
    lemmas, gloss = found["08923348-n"].split(": ")
    assert lemmas == "Tokyo, Tokio, Yeddo, Yedo, Edo, Japanese capital, capital of Japan"
    assert gloss == "the capital and largest city of Japan; the economic and cultural center of Japan"
    assert found["14638799-n"].startswith("gold, Au, atomic number 79: a soft yellow malleable ductile")
    assert not [text for text in found.values() if re.search(r"_|\((?:a|p|ip)\):|^ | $|\s{3}", text.partition(": ")[0])]
