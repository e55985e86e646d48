"""Control tokens that stand in documents are text; the end of a document is a token where that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from headwater.configs.errors import MismatchError
from headwater.train.artifacts import RunDir, read_json, write_json
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.encoding import encode_documents, end_of
from headwater.train.corpus.origin import describe_corpus
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.facts.people import make_facts
from headwater.train.huggingface.export import _tokenizer_of
from headwater.train.stream.passages import open_passages
from headwater.train.tokenizer import TextTokenizer, train_tokenizer

from .conftest import make_texts, settings_for, write_jsonl

CONTROL = "river<|endoftext|>stone"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(make_texts(5), 384)


def with_eos(tokenizer: TextTokenizer, path: Path) -> TextTokenizer:
    """The tokenizer with </s> among its control tokens."""
    own = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    own.add_special_tokens(["</s>"])
    own.save(str(path))
    return TextTokenizer.from_file(path)


def test_control_tokens_in_documents_are_text(tokenizer):
    (tokens,) = encode_documents(tokenizer, [CONTROL])
    assert tokenizer.bos_id not in tokens
    assert tokenizer.decode(tokens) == CONTROL
    tokenizer.tokenizer.encode_special_tokens = False
    assert tokenizer.bos_id in tokenizer.encode(CONTROL), "the negative control"
    (plain,) = encode_documents(tokenizer, ["river stone"])
    assert plain.tolist() == tokenizer.encode("river stone").tolist()


def test_the_token_that_ends_a_document(tokenizer, tmp_path):
    other = with_eos(tokenizer, tmp_path / "tokenizer.json")
    wanted = CorpusSettings(end_token=True)
    assert end_of(tokenizer, CorpusSettings(end_token=False)) is None
    assert end_of(tokenizer, wanted) == tokenizer.bos_id
    assert end_of(other, wanted) == other.tokenizer.token_to_id("</s>") != other.bos_id
    wanted.tokenizer.eos = "<|endoftext|>"
    assert end_of(other, wanted) == 0
    wanted.tokenizer.eos = "<eot>"
    with pytest.raises(MismatchError, match="<eot>"):
        end_of(other, wanted)
    assert [each.tolist() for each in encode_documents(other, ["", "a"], 7)] == [[], [*other.encode("a"), 7]]


@pytest.mark.parametrize("eos", ["", "</s>"])
def test_each_document_ends_once(tokenizer, tmp_path, eos):
    texts = [*make_texts(30), f"A {CONTROL} in the middle.", "short"]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    cfg = settings_for(tmp_path / "run", tmp_path / "texts.jsonl")
    cfg.corpus.end_token = True
    if eos:
        with_eos(tokenizer, tmp_path / "tokenizer.json")
        cfg.corpus.tokenizer.path = str(tmp_path / "tokenizer.json")
        cfg.corpus.max_tokens = cfg.corpus.seq_len = 220
    build_corpus(cfg)
    run = RunDir.at(cfg.out)
    passages, own = open_passages(run), TextTokenizer.from_file(run.tokenizer)
    end = end_of(own, cfg.corpus)
    assert (end == own.bos_id) is not bool(eos)
    assert [corpus.manifest["eos_id"] for corpus in passages.corpora] == [end, end]
    assert int(passages.lengths.max()) <= cfg.corpus.max_tokens
    base = passages.corpora[0]
    found: dict[str, dict[int, np.ndarray]] = {}
    for number, name in enumerate(base.ids(0, len(base))):
        document, _, piece = name.rpartition("#")
        found.setdefault(document, {})[int(piece)] = base.tokens(number)
    for number, text in enumerate(texts):
        pieces = [found[f"doc-{number}"][piece][1:] for piece in range(len(found[f"doc-{number}"]))]
        tokens = np.concatenate(pieces)
        assert (np.flatnonzero(tokens == end) == [len(tokens) - 1]).all()
        assert own.decode(tokens[:-1]) == text
    injected = passages.corpora[1]
    assert all(injected.tokens(number)[-1] == end for number in range(len(injected)))
    assert not any("</s>" in passages.text(number) for number in range(len(passages)))
    texts_of = {passage.id: passage.text for passage in make_facts(cfg.facts, cfg.seed).passages}
    assert {name: injected.text(n, own) for n, name in enumerate(injected.ids(0, len(injected)))} == texts_of


def test_a_corpus_without_end_tokens_is_described_as_before(tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", make_texts(3))
    cfg = settings_for(tmp_path / "run", tmp_path / "texts.jsonl")
    facts = make_facts(cfg.facts, cfg.seed)
    before = describe_corpus(cfg.corpus, facts)
    assert "end_token" not in before["settings"]
    assert "eos" not in before["settings"]["tokenizer"]
    cfg.corpus.end_token = True
    after = describe_corpus(cfg.corpus, facts)
    assert (after["base"] == before["base"], after["tokenizer"] == before["tokenizer"]) == (False, True)


def test_a_corpus_that_is_adopted_ends_its_documents_or_not(built, tmp_path):
    cfg = settings_for(tmp_path / "run", Path("unused"))
    cfg.corpus.prebuilt, cfg.corpus.end_token = str(RunDir.at(built.out).corpus / "base"), True
    with pytest.raises(MismatchError, match=r"set corpus.end_token=false"):
        build_corpus(cfg)
    assert not Path(cfg.out).exists()


def test_the_export_names_what_was_learnt(built, tmp_path):
    """No end token where none was trained on; the corpus's own where one was."""
    from types import SimpleNamespace

    run = RunDir.at(tmp_path / "run")
    (run.corpus / "base").mkdir(parents=True)
    run.tokenizer.write_bytes(RunDir.at(built.out).tokenizer.read_bytes())
    manifest = read_json(RunDir.at(built.out).corpus / "base" / "manifest.json")
    checkpoint = SimpleNamespace(path=run.checkpoint(1), meta={"eos_id": 5})
    assert _tokenizer_of(checkpoint)[1] == 5
    write_json(run.corpus / "base" / "manifest.json", manifest)
    assert _tokenizer_of(checkpoint)[1] is None
    write_json(run.corpus / "base" / "manifest.json", {**manifest, "eos_id": 3})
    assert _tokenizer_of(checkpoint)[1] == 3
