"""The study of a real pretrained model: a whole one with a tiny random Llama, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from headwater.configs import ConfigError, load_config
from headwater.configs.errors import MismatchError, MissingError
from headwater.launch.parts import pool
from headwater.launch.studies.leave_out import probed
from headwater.launch.studies.pretrained.common import common_facts
from headwater.launch.studies.pretrained.process import train_or_trace
from headwater.launch.studies.pretrained.settings import PretrainedSettings, shape_of
from headwater.launch.studies.pretrained.study import Pretrained, run_pretrained
from headwater.launch.studies.verdict import FAILS
from headwater.train.artifacts import RunDir

from .here import finisher, write_texts

CONFIG = "study/pretrained"

SMALL = ["corpus.passages=0", "corpus.held_out=0.1", "corpus.max_tokens=400", "corpus.seq_len=512"]
SMALL += ["facts.people=3", "facts.passages=2", "facts.distractors=0", "facts.queries=2", "facts.schedule.count=2"]
SMALL += ["callbacks.probes.every=2", "callbacks.validation.every=4", "callbacks.validation.sequences=2"]
SMALL += ["optimizer.lr=3.0e-3"]
TINY = ["traced=[2,4]", "plain=[4]", "leave_out.step=2", "leave_out.facts=2", "leave_out.top=2", "leave_out.known=0"]
TINY += ["head=6"]
TINY += [
    "leave_out.arms=[gold, headwater, nothing]",
    "index.projection.dims=4",
    "head=6",
    "evaluate.tail_patch.queries=2",
]


def test_common_facts_are_fifty_and_each_asked_once():
    facts = common_facts()
    assert len(facts) == len({fact["prompt"] for fact in facts}) == 50
    assert all(set(fact) == {"prompt", "target", "subject"} and " " not in fact["target"] for fact in facts)
    assert all(fact["target"] not in fact["prompt"] for fact in facts)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("traced=[4,2]", "rising"),
        ("leave_out.step=3", "one of traced"),
        ("plain=[3]", "some of traced"),
        ("leave_out.arms=[gold,gold]", "each once"),
        ("model=''", "make smollm2"),
    ],
)
def test_what_cannot_be_studied_is_refused(override: str, named: str):
    with pytest.raises(ConfigError, match=named):
        load_config(PretrainedSettings, CONFIG, ["model=m", override])


def test_a_model_that_is_not_there_is_missed_before_anything_is_written(tmp_path: Path):
    settings = load_config(PretrainedSettings, CONFIG, ["model=nowhere", f"out={tmp_path / 'a'}"])
    with pytest.raises(MissingError, match="nowhere"):
        Pretrained(settings).run()
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "finish_parts", finisher(train_or_trace))
    out = tmp_path / "study"
    pretrain = json.dumps([*SMALL, write_texts(tmp_path / "texts.jsonl")])
    given = [f"model={tiny_llama}", f"out={out}", *TINY, f"pretrain={pretrain}"]
    settings = load_config(PretrainedSettings, CONFIG, given)
    summary = run_pretrained(settings)
    assert "model.layers=2" in shape_of(out / "start/weights")
    model = RunDir(out / "seed-0/model")
    check_points(summary, out)
    check_left_out(summary, out, model)
    drift = summary["drift"]
    assert drift["common"]["facts"] == 50
    answered = pq.read_table(model.path / "common.parquet").to_pylist()
    for step, key in ((0, "before"), (4, "after")):
        mean = np.mean([row["prob"] for row in answered if row["step"] == step])
        assert drift["common"][key][0] == pytest.approx(mean)
    assert drift["perplexity"]["after"] < drift["perplexity"]["before"], "random weights have learnt something"
    page = (out / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert all(text in page for text in ("Gradient dot", "common facts", "Gold passages", "did not come to answer"))
    assert "| Headwater |" in (out / "table.md").read_text()
    said: list[str] = []
    before = (out / "summary.json").read_bytes()
    Pretrained(settings, said.append).run()
    assert (out / "summary.json").read_bytes() == before
    assert sum("done before" in line for line in said) == 7
    other = load_config(PretrainedSettings, CONFIG, [*given, "exact=0.5"])
    with pytest.raises(MismatchError, match="exact"):
        Pretrained(other).run()


def check_points(summary: dict, out: Path) -> None:
    assert [row["step"] for row in summary["curve"]] == [0, 2, 4]
    methods = {step: set(row["methods"]) for step, row in summary["points"].items()}
    assert methods["2"] == {"headwater", "head", "bm25", "random", "gold"}
    assert methods["4"] == {"headwater", "head", "captured", "gradient_cosine", "gradient_dot", "bm25", "random"}
    assert "tail_patch" in summary["points"]["2"]["methods"]["headwater"]
    assert summary["points"]["4"]["methods"]["bm25"]["mrr"][0] > 0.9, "the passages state the facts literally"
    assert summary["points"]["4"]["methods"]["random"]["mrr"][0] < 0.5
    # The negative control: four steps from random weights teach nobody to answer, and the study says so.
    status = {claim["claim"]: claim["status"] for claim in summary["claims"]}
    assert status["It answers 60% of the questions at the end"] == FAILS
    assert summary["answers_at"] is None
    ranks = [
        json.loads(line)["gold_ranks"] for line in (out / "seed-0/traced-4/headwater.jsonl").read_text().splitlines()
    ]
    mrr = np.mean([1 / (1 + min(each)) for each in ranks])
    assert summary["points"]["4"]["methods"]["headwater"]["mrr"][0] == pytest.approx(mrr)


def check_left_out(summary: dict, out: Path, model: RunDir) -> None:
    rows = summary["leave_out"]
    facts = [fact["probe"] for fact in json.loads((model.path / "leave_out/facts.json").read_text())]
    drop = (probed(model, 2) - probed(RunDir(out / "seed-0/without-gold"), 2))[facts]
    assert rows["gold"]["drop"][0] == pytest.approx(drop.mean())
    assert rows["gold"]["drop"][0] != 0
    # Trained again with nothing left out, nothing is another: what moves the others is what they leave out.
    assert rows["nothing"]["drop"] == [0, 0, 0]
    assert np.array_equal(probed(RunDir(out / "seed-0/without-nothing"), 2), probed(model, 2))
    removed = set((model.path / "leave_out/gold.txt").read_text().split())
    from headwater.train.stream.passages import open_passages

    passages = open_passages(model)
    seen = pq.read_table(out / "seed-0/without-gold/ledger")["passage"].to_pylist()
    assert removed
    assert not {passages.id_of(number) for number in seen} & removed
    assert max(pq.read_table(out / "seed-0/without-gold/ledger")["step"].to_pylist()) == 2
