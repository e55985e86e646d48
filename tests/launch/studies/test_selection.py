"""The study of data selection: what is drawn, what is compared, and a small one from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_1samp

from headwater.configs import ConfigError, load_config
from headwater.configs.errors import MismatchError, MissingError, UserError
from headwater.launch.parts import pool
from headwater.launch.studies.selection.data import divided, questions, shuffled
from headwater.launch.studies.selection.process import train_and_ask
from headwater.launch.studies.selection.settings import ARMS, SelectionSettings
from headwater.launch.studies.selection.study import Selection, run_selection
from headwater.launch.studies.selection.summary import over_seeds
from headwater.train.corpus.documents import Document

from .here import finisher

CONFIG = "study/selection"


def test_documents_of_the_task_are_held_out_and_a_share_of_the_others_is_shuffled():
    every = [Document(f"c{n}/{'economy' if n % 3 == 0 else 'people'}", f"{n} a b c d e f g") for n in range(60)]
    settings = SelectionSettings(held_out=6, documents=40, shuffled=0.25)
    out, corpus = divided(every, settings, np.random.default_rng(1))
    assert len(out) == 6
    assert all(document.id.endswith("/economy") for document in out)
    names = [document.id.removeprefix("shuffled/") for document in corpus]
    assert len(names) == len(set(names)) == 40
    assert not set(names) & {document.id for document in out}
    broken = [document for document in corpus if document.id.startswith("shuffled/")]
    assert len(broken) == 10
    texts = {document.id: document.text for document in every}
    for document in broken:
        was = texts[document.id.removeprefix("shuffled/")]
        assert sorted(document.text.split()) == sorted(was.split())
    assert sum(document.text != texts[document.id.removeprefix("shuffled/")] for document in broken) >= 9
    assert divided(every, settings, np.random.default_rng(1)) == (out, corpus)
    for few in (SelectionSettings(held_out=20), SelectionSettings(held_out=6, documents=55)):
        with pytest.raises(UserError, match="too few documents"):
            divided(every, few, np.random.default_rng(1))


def test_questions_are_pieces_of_a_document_without_its_rest():
    words = [f"w{n}" for n in range(50)]
    first, second = questions(Document("a", " ".join(words)))
    assert (first["prompt"].split(), first["target"].split()) == (words[:6], words[6:24])
    assert (second["prompt"].split(), second["target"].split()) == (words[24:30], words[30:48])
    assert shuffled(Document("a", "one"), np.random.default_rng(0)) == Document("shuffled/a", "one")


def test_intervals_are_over_seeds():
    values_SQ = np.random.default_rng(0).normal(0.3, 1, (5, 40)) + np.arange(5)[:, None] / 10
    mean, low, high = over_seeds(values_SQ)
    expected = ttest_1samp(values_SQ.mean(axis=1), 0).confidence_interval(0.95)
    assert mean == pytest.approx(values_SQ.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high))
    mean, low, high = over_seeds(values_SQ[:1])
    assert low < mean < high


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("task='('", "a pattern"),
        ("seeds=[1,1]", "each once"),
        ("share=1", "< 1"),
        ("index=[projection.dim=3]", "index: projection.dim"),
        ("select=[score=median]", "select: score"),
    ],
)
def test_what_cannot_be_studied_is_refused(override: str, named: str):
    with pytest.raises(ConfigError, match=named):
        load_config(SelectionSettings, CONFIG, [override])


def test_sources_are_looked_at_before_anything_runs(tmp_path: Path):
    given = 'pretrain=["corpus.sources=[{kind: jsonl, path: nowhere.jsonl}]"]'
    with pytest.raises(MissingError, match=r"nowhere\.jsonl"):
        Selection(load_config(SelectionSettings, CONFIG, [f"out={tmp_path / 'a'}", given])).run()
    assert not (tmp_path / "a").exists()


SMALL = ["train.steps=6", "model.layers=1", "model.hidden=32", "model.heads=2", "model.kv_heads=2"]
SMALL += ["model.ffn_hidden=64", "corpus.passages=80", "corpus.tokenizer.vocab_size=512"]


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "finish_parts", finisher(train_and_ask))
    given = [f"out={tmp_path}", f"pretrain={json.dumps(SMALL)}", "seeds=[3]", "held_out=4", "documents=12"]
    given += ["asked=10", "index=[projection.dims=6]", "share=0.25"]
    settings = load_config(SelectionSettings, CONFIG, given)
    summary = run_selection(settings)
    whole = tmp_path / "seed-3/whole"
    numbers = range(pq.read_table(whole / "corpus/base/passages.parquet").num_rows)
    assert summary["passages"] == [len(numbers)] == [80]
    seen = {arm: set(pq.read_table(tmp_path / f"seed-3/{arm}/ledger")["passage"].to_pylist()) for arm in ARMS}
    names = [json.loads(line)["id"] for line in (tmp_path / "seed-3/chosen/headwater.jsonl").read_text().splitlines()]
    assert len(names) == 20
    left_out = (tmp_path / "seed-3/chosen/without-headwater.txt").read_text().split()
    assert len(left_out) == 60
    assert not set(left_out) & set(names)
    for arm, each in seen.items():
        assert len(each) == summary["arms"][arm]["chosen"]["passages"] == 20
    assert len({frozenset(each) for each in seen.values()}) == 3
    ours = summary["arms"]["headwater"]
    for other in ("random", "bm25", "whole"):
        difference = ours["log_probability"][0] - summary["arms"][other]["log_probability"][0]
        assert ours["above"][other][0] == pytest.approx(difference)
    assert len(summary["claims"]) == 2
    assert (tmp_path / "report/index.html").read_text().count("data:image/png;base64,") == 1
    assert "A random half" in (tmp_path / "table.md").read_text()
    said: list[str] = []
    assert Selection(settings, said.append).run() == summary
    assert sum("done before" in line for line in said) == 4
    with pytest.raises(MismatchError, match="shuffled"):
        Selection(load_config(SelectionSettings, CONFIG, [*given, "shuffled=0"])).run()
