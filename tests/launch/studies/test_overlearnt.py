"""The study of overlearnt facts: what is drawn and left out, how it is judged, and a study from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from headwater.configs import ConfigError, load_config
from headwater.configs.errors import MismatchError
from headwater.launch.parts import pool
from headwater.launch.studies.leave_out import draw_facts, joined, leave_out_table, random_passages, share
from headwater.launch.studies.overlearnt.page import as_markdown
from headwater.launch.studies.overlearnt.process import train_and_trace
from headwater.launch.studies.overlearnt.settings import LABELS, METHODS, OverlearntSettings, saved_steps
from headwater.launch.studies.overlearnt.study import Overlearnt
from headwater.launch.studies.overlearnt.summary import judge
from headwater.launch.studies.verdict import FAILS, HOLDS, ON_AVERAGE

from .here import finisher

CONFIG = "study/overlearnt"


def test_facts_are_drawn_among_those_that_are_known():
    probability = np.array([0.9, 0.2, 0.6, 0.7, 0.5, 0.1, 0.8])
    drawn = draw_facts(probability, 0.5, 3, seed=1)
    assert len(drawn) == 3
    assert set(drawn) < {0, 2, 3, 4, 6}
    assert drawn == draw_facts(probability, 0.5, 3, seed=1)
    assert any(draw_facts(probability, 0.5, 3, seed) != drawn for seed in range(2, 8))
    # Too few are known: the most probable ones, whatever the seed.
    assert draw_facts(probability, 0.75, 3, seed=5) == [0, 3, 6]


def test_random_passages_state_none_of_the_facts(monkeypatch: pytest.MonkeyPatch):
    def corpus(names: list[str]) -> SimpleNamespace:
        return SimpleNamespace(passages=len(names), ids=lambda start, stop: names[start:stop])

    planted = [f"p#{n}" for n in range(9)]
    opened = SimpleNamespace(corpora=[corpus(["base#0", "base#1"]), corpus(planted)])
    monkeypatch.setattr("headwater.train.stream.passages.open_passages", lambda run: opened)
    queries = [SimpleNamespace(gold=("p#1", "p#4")), SimpleNamespace(gold=("p#4", "p#7"))]
    drawn = random_passages(None, queries, 4, seed=0)
    assert len(set(drawn)) == 4
    assert set(drawn) <= {"p#0", "p#2", "p#3", "p#5", "p#6", "p#8"}
    assert len(random_passages(None, queries, 50, seed=0)) == 6


def test_saved_steps_are_even_and_end_with_the_last():
    settings = OverlearntSettings(checkpoints=6)
    assert saved_steps(settings, 2250) == [375, 750, 1125, 1500, 1875, 2250]
    assert saved_steps(settings, 4) == [1, 2, 3, 4]


def test_the_trainings_again_differ_in_what_is_left_out_alone():
    settings = load_config(OverlearntSettings, CONFIG, ["out=x"])
    study = Overlearnt(settings)
    model, again = study._model(1), study._retraining(1, "last_log_odds")
    assert (model.path, again.path) == (Path("x/seed-1/model"), Path("x/seed-1/without-last-log-odds"))
    a, b = model.settings, again.settings
    assert a.callbacks.capture.enabled
    assert a.callbacks.capture.proj == settings.captured_dims == 90
    dims, head = settings.index.projection.dims, settings.index.projection.head
    assert 8 * dims**2 + head**2 == pytest.approx(8 * 90**2, rel=0.01), "eight layers: as many bytes of each"
    alike = Overlearnt(load_config(OverlearntSettings, CONFIG, ["out=x", "captured_dims=0"]))._model(1)
    assert alike.settings.callbacks.capture.proj == dims
    capture, index = a.callbacks.capture, settings.index
    assert (capture.curvature, capture.damping) == (index.curvature.kind, index.curvature.damped)
    assert (capture.correction, capture.codecs) == (index.correction, index.codecs)
    assert a.checkpoint.steps[-1] == a.train.steps == 2250
    assert a.train.precision == "bf16"
    assert b.train.exclude == "x/seed-1/model/leave_out/last_log_odds.txt"
    assert not b.callbacks.capture.enabled
    b.train.exclude, b.out = a.train.exclude, a.out
    b.checkpoint, b.callbacks = a.checkpoint, a.callbacks
    assert a == b, "the same seed, people, order and schedule of the learning rate"


def test_what_cannot_be_studied_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"leave_out\.arms"):
        load_config(OverlearntSettings, CONFIG, ["leave_out.arms=[gold, goold]"])
    with pytest.raises(ConfigError, match="seeds"):
        load_config(OverlearntSettings, CONFIG, ["seeds=[1, 1]"])
    nobody = load_config(OverlearntSettings, CONFIG, [f"out={tmp_path / 'a'}", "pretrain=[facts.people=0]"])
    with pytest.raises(ConfigError, match="people"):
        Overlearnt(nobody).run()
    assert not (tmp_path / "a").exists()
    study = Overlearnt(load_config(OverlearntSettings, CONFIG, [f"out={tmp_path / 'b'}"]))
    study._check_same()
    study._check_same()
    other = Overlearnt(load_config(OverlearntSettings, CONFIG, [f"out={tmp_path / 'b'}", "precision=fp32"]))
    with pytest.raises(MismatchError, match="another out"):
        other._check_same()


def test_share_of_golds_drop_is_paired():
    gold = np.random.default_rng(0).uniform(0.1, 1, 60)
    assert share(gold / 2, gold) == pytest.approx([0.5, 0.5, 0.5]), "the same facts are drawn for both"
    mean, low, high = share(gold / 2 + np.random.default_rng(1).normal(0, 0.3, 60), gold)
    assert low < mean < high
    assert high - low > 0.1


def arms(drops: dict[str, list[float]]) -> dict:
    return {
        name: {"passages": 5, "drop": np.array(values), "before": np.full(len(values), 0.9)}
        for name, values in drops.items()
    }


def summary_with(mrr: dict[str, list[float]], drops: dict[str, list[float]]) -> tuple[dict, dict]:
    methods = {name: {"mrr": mrr.get(name, [0.5, 0.4, 0.6])} for name in METHODS}
    pooled = {"methods": methods, "leave_out": leave_out_table(arms(drops))}
    return pooled, {"0": pooled}


def test_claims_hold_by_the_interval_on_average_or_not():
    gold, none = [0.8, 0.9, 0.7, 0.8] * 5, [0.1, 0.2, 0.1, 0.3] * 5
    mrr = {"last_log_odds": [0.86, 0.80, 0.91], "captured": [0.95, 0.92, 0.98]}
    pooled, seeds = summary_with(
        mrr, {"gold": gold, "last_log_odds": none, "captured": [each - 0.01 for each in gold], "random": none}
    )
    found = {claim["claim"]: claim["status"] for claim in judge(pooled, seeds)}
    assert list(found.values()) == [ON_AVERAGE, HOLDS, FAILS, FAILS, HOLDS, HOLDS]
    assert len(found) == 6, "every claim has its own words"
    assert pooled["leave_out"]["random"]["above_random"] == [0, 0, 0]
    # Without the arms that they are measured against, nothing is claimed of leaving out.
    pooled, seeds = summary_with(mrr, {"captured": gold})
    assert len(judge(pooled, seeds)) == 2
    text = as_markdown({"pooled": pooled, "seeds": seeds, "claims": judge(pooled, seeds)})
    assert "| Captured mean row | .950 [.920, .980] | –" in text


def test_arms_of_all_seeds_are_joined():
    both = joined([arms({"gold": [0.5, 0.7]}), arms({"gold": [0.1]})])
    assert both["gold"]["passages"] == 10
    assert both["gold"]["drop"].tolist() == [0.5, 0.7, 0.1]


TINY = [
    "facts.people=4",
    "facts.distractors=0",
    "facts.queries=1",
    "facts.schedule.count=2",
    "train.steps=12",
    "corpus.passages=60",
    "corpus.tokenizer.vocab_size=1024",
    "model.layers=1",
    "model.hidden=32",
    "model.heads=2",
    "model.ffn_hidden=64",
    "callbacks.metrics.tensorboard=false",
]


def tiny(out: Path) -> OverlearntSettings:
    small = ["checkpoints=2", "leave_out.facts=2", "leave_out.top=3", "leave_out.arms=[gold, random]", "seeds=[0]"]
    small += ["index.projection.dims=4", "evaluate.tail_patch.queries=2", f"pretrain={json.dumps(TINY)}"]
    small += ["preset=pretrain/tiny", "precision=fp32", f"out={out}"]
    return load_config(OverlearntSettings, CONFIG, small)


@pytest.mark.slow
def test_a_study_from_end_to_end_broken_off_after_its_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "study"

    def model_alone(path: Path, task: dict[str, Any]) -> int:
        if path.name != "model":
            raise KeyboardInterrupt
        return train_and_trace(path, task)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "finish_parts", finisher(model_alone))
        with pytest.raises(KeyboardInterrupt):
            Overlearnt(tiny(out)).run()
    assert (out / "seed-0/model/leave_out/facts.json").exists()
    assert not (out / "summary.json").exists()
    stamp = (out / "seed-0/model/evaluation/table.json").stat().st_mtime_ns
    said: list[str] = []
    monkeypatch.setattr(pool, "finish_parts", finisher(train_and_trace))
    Overlearnt(tiny(out), said.append).run()
    assert "seed-0/model: done before" in said
    assert (out / "seed-0/model/evaluation/table.json").stat().st_mtime_ns == stamp, "not done again"
    check_study(out)
    first = json.loads((out / "summary.json").read_text())
    said.clear()
    Overlearnt(tiny(out), said.append).run()
    assert sum("done before" in line for line in said) == 3
    assert json.loads((out / "summary.json").read_text()) == first


def check_study(out: Path) -> None:
    model = out / "seed-0/model"
    summary = json.loads((out / "summary.json").read_text())
    assert set(METHODS) | {"bm25", "random"} <= set(summary["pooled"]["methods"])
    for name in METHODS:
        for metric in ("mrr", "hit@10", "recall@10", "tail_patch"):
            mean, low, high = summary["pooled"]["methods"][name][metric]
            assert low <= mean <= high
    assert summary["pooled"]["methods"]["captured"]["queries"] == 4
    assert json.loads((model / "index/trackstar-6/index.json").read_text())["model"]["step"] == 6
    removed = (model / "leave_out/gold.txt").read_text().split()
    names = pq.read_table(model / "corpus/injected/passages.parquet")["id"].to_pylist()
    base = pq.read_table(model / "corpus/base/passages.parquet").num_rows
    numbers = {base + names.index(name) for name in removed}
    left_out, seen = (set(pq.read_table(path / "ledger")["passage"].to_pylist()) for path in (
        out / "seed-0/without-gold", model))  # fmt: skip
    assert numbers <= seen
    assert seen - left_out == numbers, "these visits are missing, and no other"
    assert summary["pooled"]["leave_out"]["gold"]["passages"] == len(removed)
    assert len(summary["claims"]) == 2
    page = (out / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert all(LABELS[name] in page for name in METHODS)
    assert "Captured + log-odds" in (out / "table.md").read_text()
