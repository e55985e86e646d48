"""An index of documents: what is wrong is found before the corpus is gone through, and hints name keys that exist."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from headwater.attribution.index.build import build_index
from headwater.attribution.settings import IndexSettings, ProjectionSettings, TracedCorpusSettings, TracedModelSettings
from headwater.configs import describe
from headwater.configs.errors import UserError
from headwater.train.artifacts import read_json, write_json

LINE = '{"id": "a", "text": "a river of stone and cloud, and an ember"}\n'
KEYS = {row.key for row in describe(IndexSettings)}

CORPORA: dict[str, tuple[str, dict[str, str], str]] = {
    "no such token": (LINE, {"bos": "<go>"}, "set corpus.bos"),
    "no such field": (LINE, {"text_field": "body"}, "set corpus.text_field"),
    "one id twice": (LINE * 2, {}, "set corpus.id_field"),
    "no text": ('{"text": " "}\n', {}, "check corpus.path, corpus.kind and corpus.text_field"),
    "no files": (LINE, {"path": "nowhere"}, "correct corpus.path"),
}


def index(model: Path, out: Path, corpus: TracedCorpusSettings) -> None:
    settings = IndexSettings(out=str(out), corpus=corpus, projection=ProjectionSettings(dims=2))
    settings.model = TracedModelSettings(path=str(model))
    build_index(settings)


@pytest.mark.parametrize("name", CORPORA)
def test_hints_name_keys_that_the_command_has(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    text, given, hint = CORPORA[name]
    (tmp_path / "docs.jsonl").write_text(text)
    corpus = TracedCorpusSettings(**{"path": str(tmp_path / "docs.jsonl"), "max_tokens": 40, **given})
    with pytest.raises(UserError) as caught:
        index(tiny_llama, tmp_path / "out", corpus)
    said = str(caught.value)
    assert hint in said
    for key in re.findall(r"\b(?:corpus|model|projection|curvature)(?:\.[a-z_]+)+", said.replace(str(tmp_path), "")):
        assert key in KEYS, said
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused_at_once(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    tokenizer = read_json(model / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    last = next(token for token, number in vocabulary.items() if number == 256)
    # What is only added, as a token for padding often is, does not count.
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 300, "content": "[PAD]"})
    write_json(model / "tokenizer.json", tokenizer)
    (tmp_path / "docs.jsonl").write_text(LINE)
    corpus = TracedCorpusSettings(path=str(tmp_path / "docs.jsonl"), max_tokens=40)
    index(model, tmp_path / "index", corpus)
    vocabulary[last] = 257
    write_json(model / "tokenizer.json", tokenizer)
    (tmp_path / "docs.jsonl").write_text("not looked at")
    with pytest.raises(UserError, match=r"(?s)tokens that the model does not know.*up to 257.*0 to 256"):
        index(model, tmp_path / "out", corpus)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_traced_is_refused_before_its_corpus(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are not the gradients: the inputs of every layer are doubled on the way to them."""
    from headwater.attribution.models.base import Site

    monkeypatch.setattr(Site, "true_input", lambda self, given: 2 * given)
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": "river " * 20}) + "\n")
    with pytest.raises(UserError, match="rows are not its gradients"):
        index(tiny_llama, tmp_path / "out", TracedCorpusSettings(path=str(tmp_path / "docs.jsonl"), max_tokens=40))
    assert not (tmp_path / "out").exists()
