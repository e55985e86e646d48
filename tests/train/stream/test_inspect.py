import io
import shutil

import pytest
from rich.console import Console

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.corpus.inspect import inspect
from headwater.train.stream.corpus import open_corpus


def shown(path, **options):
    console = Console(file=io.StringIO(), width=160)
    inspect(path, console=console, **options)
    return console.file.getvalue()


def test_a_run_shows_its_corpora_and_some_sequences(run):
    text = shown(run.path, sequence=2, count=1)
    corpus = open_corpus(run.corpus / "base")
    first = corpus.sequence(2).first_passage
    for part in (
        "base",
        "injected",
        f"{corpus.passages:,}",
        corpus.fingerprint,
        "sequence 2:",
        *corpus.ids(first, first + 1),
    ):
        assert part in text
    assert "sequence 0:" not in text


def test_one_passage_is_shown_whole_by_id_or_number(run):
    passage_id = open_corpus(run.corpus / "injected").ids(4, 5)[0]
    text = shown(run.path, passage=passage_id)
    assert passage_id in text
    name = passage_id.split("/")[1].split("#")[0].split("-")[0].capitalize()
    assert name in text
    assert "passage 7:" in shown(run.corpus / "base", passage="7")


def test_bad_requests_and_damage_are_named(run, tmp_path):
    with pytest.raises(MissingError, match="holds no corpus"):
        shown(tmp_path)
    with pytest.raises(MissingError, match="nobody"):
        shown(run.path, passage="nobody")
    with pytest.raises(UserError, match="no sequence 100000"):
        shown(run.corpus / "base", sequence=100000)
    shutil.copytree(run.corpus / "base", tmp_path / "base")
    shard = tmp_path / "base" / "00002" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CorruptError, match="00002"):
        shown(tmp_path / "base", count=1)
