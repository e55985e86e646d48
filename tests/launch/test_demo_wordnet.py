"""The demo's whole way on another text with real facts: a small WordNet, a tiny model, a few updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.configs import load_config
from headwater.launch.demo import Demo, DemoSettings
from headwater.train.facts.capitals import capitals
from headwater.train.facts.elements import ELEMENTS

from .demo_process import pretrain_here

OVERRIDES = (
    *("index.projection={dims: 6, head: 8}", "trackstar.projection.dims=6"),
    *("evaluate.tail_patch.queries=2", "report.facts=2"),
)
PRETRAIN = (
    *("train.steps=8", "callbacks.probes.every=4", "corpus.tokenizer.vocab_size=512", "optimizer.warmup=2"),
    *("model.hidden=32", "model.heads=2", "model.kv_heads=2", "model.ffn_hidden=48"),
    *("facts.countries=4", "facts.elements=2", "facts.distractors=1", "facts.passages=4", "facts.schedule.count=2"),
)


def write_wordnet(directory: Path) -> None:
    """A gloss of every capital and element, and other words of both files and of another, which is not read."""
    glosses = [
        *(
            (15, f"{capital} capital_of_{country}", f"the capital of {country}")
            for country, capital in capitals().items()
        ),
        *(
            (27, f"{name} {symbol} atomic_number_{n}", "an element")
            for n, (name, symbol) in enumerate(ELEMENTS, start=1)
        ),
        *((15, f"Place_{n}", f"a town of {n} houses on a river") for n in range(60)),
        *((13, f"dish_{n}", "something to eat") for n in range(60)),
    ]
    lines = []
    for number, (file, lemmas, gloss) in enumerate(glosses, start=1):
        words = [part.replace(" ", "_") for part in lemmas.split(" ")]
        if file == 15 and " capital_of_" in lemmas:
            words = [part.replace(" ", "_") for part in lemmas.split(" capital_of_")]
            words[1] = f"capital_of_{words[1]}"
        fields = " ".join(f"{word} 0" for word in words)
        lines.append(f"{number:08d} {file:02d} n {len(words):02x} {fields} 000 | {gloss}")
    (directory / "data.noun").write_text("\n".join(lines))
    for name in ("verb", "adj", "adv"):
        (directory / f"data.{name}").touch()


def test_presets_differ_from_the_demo_in_the_ground_alone() -> None:
    """What was chosen on the demo is not chosen again."""
    from dataclasses import asdict

    from headwater.train.settings import PretrainSettings

    demo, other = (asdict(load_config(DemoSettings, name)) for name in ("demo", "demo/wordnet"))
    assert {key for key in demo if demo[key] != other[key]} == {"out", "preset"}
    demo, other = (asdict(load_config(PretrainSettings, each["preset"])) for each in (demo, other))
    assert {key for key in demo if demo[key] != other[key]} == {"out", "corpus", "facts"}
    assert {key for key in demo["corpus"] if demo["corpus"][key] != other["corpus"][key]} == {"sources", "passages"}
    assert {key for key in demo["facts"] if demo["facts"][key] != other["facts"][key]} == {
        "people", "countries", "elements",
    }  # fmt: skip


@pytest.mark.slow
def test_real_facts_on_wordnet_are_traced_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.launch.demo.run_module", pretrain_here)
    (tmp_path / "wordnet").mkdir()
    write_wordnet(tmp_path / "wordnet")
    out = tmp_path / "run"
    settings = load_config(DemoSettings, "demo/wordnet", [f"out={out}", *OVERRIDES])
    settings.pretrain = [*PRETRAIN, f"corpus.sources.0.path={tmp_path / 'wordnet'}"]
    summary = Demo(settings, say=lambda text: None).run()
    assert summary["corpus"]["passages"] == summary["index"]["passages"] == len(capitals()) + 118 + 60 + 5 * 2 + 3 * 4
    assert {name: summary["facts"][name] for name in ("people", "countries", "elements", "queries")} == {
        "people": 0, "countries": 5, "elements": 3, "queries": 4 + 2 * 2,
    }  # fmt: skip
    for name in ("headwater", "trackstar", "gradient_cosine", "gradient_dot", "bm25", "random"):
        row = summary["methods"][name]
        assert row["own_queries"] == row["queries"] == 8, "the small WordNet states every fact"
        assert 0 < row["own_mrr"][0] <= 1
    # BM25 finds the words wherever they stand, in what was planted and in what the corpus says itself.
    for metric in ("mrr", "own_mrr"):
        assert summary["methods"]["bm25"][metric][0] > 0.9 > 0.3 > summary["methods"]["random"][metric][0]
    first = json.loads((out / "evaluation" / "bm25.jsonl").read_text().splitlines()[0])
    assert len(first["gold_ranks"]) == 2
    assert len(first["own_ranks"]) == 1
    page = (out / "report" / "index.html").read_text()
    assert "facts about 5 countries and 3 chemical elements" in page
    assert "own text states 8 of the facts" in page
