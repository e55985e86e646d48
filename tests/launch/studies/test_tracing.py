"""The study of tracing: a whole one with narrow models, what it refuses, and the recipe on another run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from headwater.attribution.tracing.queries import Query, read_queries
from headwater.configs import ConfigError, load_config
from headwater.configs.errors import MismatchError, MissingError, UserError
from headwater.launch.parts import pool
from headwater.launch.parts.training import share_corpus
from headwater.launch.studies.leave_out import probed
from headwater.launch.studies.tracing.process import make_part
from headwater.launch.studies.tracing.questions import (
    draw_unseen,
    other_questions,
    read_questions,
    require_records,
    statement_of,
    write_questions,
)
from headwater.launch.studies.tracing.settings import ANSWERS, TracingSettings
from headwater.launch.studies.tracing.study import Tracing, run_tracing
from headwater.launch.studies.tracing.tracing import first_trained
from headwater.launch.studies.verdict import NOT_TESTABLE
from headwater.train.artifacts import RunDir

from .here import finisher, write_texts

CONFIG = "study/tracing"
SIZES = ["model.layers=1", "model.heads=2", "model.kv_heads=2"]
SMALL = ["corpus.passages=0", "corpus.tokenizer.vocab_size=640", "facts.people=4", "facts.distractors=1"]
SMALL += ["facts.passages=2", "facts.queries=2", "facts.schedule.count=2", "optimizer.warmup=1", *SIZES]
TINY = ["sizes=[{name: a, pretrain: [model.hidden=16, model.ffn_hidden=24]}, {name: b, pretrain: [model.hidden=32]}]"]
TINY += ["amounts=[2,4]", "seeds=[0]", "unseen=1", "index.projection.dims=4", "trackstar.projection.dims=4"]
TINY += ["evaluate.tail_patch.queries=3", "evaluate.tail_patch.top=3", "leave_out.facts=2", "leave_out.top=2"]
RECIPE = ["recipe.dims=4", "recipe.fewer=2", "recipe.weights=[0.9]"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["amounts=[4,2]", "seeds=[1,1]"], r"amounts(.|\n)*rising(.|\n)*seeds|seeds(.|\n)*amounts(.|\n)*rising"),
        (["sizes=[{name: a}, {name: a}]"], "a name of its own"),
        (["recipe.fewer=40"], "less than dims"),
        (["recipe.weights=[0.75]"], "others than task_weight"),
        (["leave_out.methods=[bm25]"], "trackstar"),
        (["index.model.precision=auto", "trackstar.model.precision=auto"], "index.model.precision, trackstar.model.p"),
        (["evaluate.more_metrics=[recall@50]"], "more_metrics"),
    ],
)
def test_what_cannot_be_studied_is_refused(overrides: list[str], named: str):
    with pytest.raises(ConfigError, match=named):
        load_config(TracingSettings, CONFIG, overrides)


def test_problems_of_all_sizes_are_told_together_before_anything_is_written(tmp_path: Path):
    sizes = "sizes=[{name: a, pretrain: [model.hiden=3]}, {name: b, pretrain: [model.layers=0]}]"
    settings = load_config(TracingSettings, CONFIG, [sizes, f"out={tmp_path / 'a'}", "questions=nowhere.jsonl"])
    with pytest.raises(ConfigError, match=r"nowhere(.|\n)*hiden(.|\n)*layers"):
        Tracing(settings).run()
    few = load_config(TracingSettings, CONFIG, ["pretrain=[facts.people=5]", f"out={tmp_path / 'a'}"])
    with pytest.raises(ConfigError, match="more than unseen = 8"):
        Tracing(few).run()
    away = load_config(TracingSettings, CONFIG, [f"recipe.run={tmp_path}", f"out={tmp_path / 'a'}"])
    with pytest.raises(MissingError, match="headwater study pretrained"):
        Tracing(away).run()
    assert not (tmp_path / "a").exists()


def test_the_presets_are_within_their_hours():
    short, long = (load_config(TracingSettings, name, ["seeds=[0]"]) for name in (CONFIG, f"{CONFIG}-long"))
    assert len(short.sizes) == len(short.amounts) == len(long.sizes) == len(long.amounts) == 3
    assert (short.leave_out.facts, short.recipe.run) == (0, "")
    assert long.leave_out.facts > 0
    parts = Tracing(long).parts()
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    for number, part in enumerate(parts):
        assert set(part.after) <= set(names[:number]), "what a part needs comes before it"


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "finish_parts", finisher(make_part))
    out = tmp_path / "study"
    pretrain = json.dumps([*SMALL, write_texts(tmp_path / "texts.jsonl")])
    given = [f"out={out}", *TINY, *RECIPE, "preset=pretrain/tiny", f"pretrain={pretrain}"]
    settings = load_config(TracingSettings, CONFIG, given)
    summary = run_tracing(settings)
    check_points(summary, out)
    check_unseen(out)
    check_left_out(summary, out)
    check_own_questions(settings, out, tmp_path)
    last = summary["claims"][-1]
    assert (last["status"], "recipe.run=" in last["measured"]) == (NOT_TESTABLE, True)
    page = (out / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert all(text in page for text in ("What kinds of passages", "never shown", "differs from the paper in"))

    said: list[str] = []
    before, written = (out / "summary.json").read_bytes(), stamps(out / "seed-0/a")
    with_run = load_config(TracingSettings, CONFIG, [*given, f"recipe.run={out / 'seed-0/a'}"])
    again = Tracing(with_run, said.append).run()
    assert sum("done before" in line for line in said) == 17
    assert stamps(out / "seed-0/a") == written, "nothing is written to the run that is taken apart"
    check_recipe(again)
    now = json.loads((out / "summary.json").read_bytes())["measures"]
    assert now.pop("recipe")
    assert now == {name: each for name, each in json.loads(before)["measures"].items() if name != "recipe"}
    other = load_config(TracingSettings, CONFIG, [*given, "unseen=2"])
    with pytest.raises(MismatchError, match="unseen"):
        Tracing(other).run()


def check_own_questions(settings: TracingSettings, out: Path, tmp_path: Path) -> None:
    """A file of one's own in place of the planted people's: documents for golds, subjects that are not shown."""
    own = tmp_path / "own"
    share_corpus(out / "seed-0/corpus", own)
    asked = {"prompt": "p", "relation": "r"}
    lines = [{**asked, "target": f"t{n}", "subject": f"S{n}", "gold": [f"d{n}"]} for n in (3, 4, 5)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    write_questions(replace(settings, questions=str(tmp_path / "q.jsonl")), RunDir(own), 0)
    found = read_questions(own)
    assert [each.gold for each in found] == [("d3#0",), ("d4#0",), ("d5#0",)]
    unseen = [each.gold[0] for each in found if each.record["unseen"]]
    assert (own / "unseen.txt").read_text().split() == unseen
    assert len(unseen) == 1
    with pytest.raises(UserError, match="too few subjects are asked about"):
        write_questions(replace(settings, questions=str(tmp_path / "q.jsonl"), unseen=3), RunDir(own), 0)


def stamps(path: Path) -> dict[str, int]:
    return {str(each): each.stat().st_mtime_ns for each in sorted(path.rglob("*")) if each.is_file()}


def check_points(summary: dict, out: Path) -> None:
    found = summary["measures"]["growth"]
    assert list(found["rows"]) == ["a", "b"]
    assert found["parameters"]["a"] < found["parameters"]["b"]
    assert list(found["rows"]["a"]) == ["0", "2", "4"]
    methods = found["rows"]["b"]["4"]["methods"]
    assert methods["bm25"]["mrr"][0] > 0.9, "the passages state the facts literally"
    lines = (out / "seed-0/b-traced-4/trackstar.jsonl").read_text().splitlines()
    seen = [not each.record["unseen"] for each in read_questions(out / "seed-0/b")]
    ranks = [json.loads(line)["gold_ranks"] for line, shown in zip(lines, seen, strict=True) if shown]
    assert methods["trackstar"]["mrr"][0] == pytest.approx(np.mean([1 / (1 + min(each)) for each in ranks]))
    assert methods["trackstar"]["tail_patch"] is not None
    assert found["rows"]["b"]["0"]["methods"]["trackstar"]["tail_patch"] is None
    # The slope of one doubling is the difference of its ends where there are two places on each axis.
    mean = {key: np.mean([found["rows"][key][step]["methods"]["trackstar"]["mrr"][0] for step in "24"]) for key in "ab"}
    doublings = np.log2(found["parameters"]["b"] / found["parameters"]["a"])
    assert found["slopes"]["size"]["trackstar"]["mrr"][0] == pytest.approx((mean["b"] - mean["a"]) / doublings)
    random = {(out / f"seed-0/{size}-traced-{step}/random.jsonl").read_bytes() for size in "ab" for step in (2, 4)}
    assert len(random) == 4, "each random ranking is another one"
    shares = summary["measures"]["kinds"]["by_method"]["bm25"]
    assert sum(share[0] for share in shares.values()) == pytest.approx(1)


def check_unseen(out: Path) -> None:
    questions = read_questions(out / "seed-0/corpus")
    unseen = {each.record["subject"] for each in questions if each.record["unseen"]}
    assert len(unseen) == 1
    names = (out / "seed-0/corpus/unseen.txt").read_text().split()
    assert len(names) == 2, "every passage about the person"
    assert {name for each in questions if each.record["unseen"] for name in each.gold} <= set(names)
    assert not visited(out, "a") & set(names)
    index = json.loads((out / "seed-0/a/index/trackstar-4/index.json").read_text())
    assert index["model"]["step"] == 4


def visited(out: Path, run: str) -> set[str]:
    from headwater.train.stream.passages import open_passages

    passages = open_passages(RunDir(out / f"seed-0/{run}"))
    return {passages.id_of(n) for n in pq.read_table(out / f"seed-0/{run}/ledger")["passage"].to_pylist()}


def check_left_out(summary: dict, out: Path) -> None:
    rows = summary["measures"]["growth"]["rows"]["b"]
    model = RunDir(out / "seed-0/b")
    facts = [fact["probe"] for fact in json.loads((model.path / "leave_out/facts.json").read_text())]
    for step in (2, 4):
        gone = RunDir(out / "seed-0/b-without-gold")
        drop = (probed(model, step, file=model.path / ANSWERS) - probed(gone, step, file=gone.path / ANSWERS))[facts]
        assert rows[str(step)]["left_out"]["gold"]["drop"][0] == pytest.approx(drop.mean())
        assert rows[str(step)]["left_out"]["gold"]["share"] == pytest.approx([1, 1, 1])
        assert rows[str(step)]["left_out"]["random"]["passages"] == rows[str(step)]["left_out"]["gold"]["passages"]
        named = (model.path / f"leave_out/trackstar-{step}.txt").read_text().split()
        assert named
        assert not set(named) & set((out / "seed-0/corpus/unseen.txt").read_text().split())
    removed = set((model.path / "leave_out/gold.txt").read_text().split())
    unseen = set((out / "seed-0/corpus/unseen.txt").read_text().split())
    assert removed
    assert not removed & unseen
    assert visited(out, "b") - visited(out, "b-without-gold") == removed
    assert max(pq.read_table(out / "seed-0/b-without-trackstar-2/ledger")["step"].to_pylist()) == 2


def check_recipe(summary: dict) -> None:
    rows = summary["measures"]["recipe"]["rows"]
    labels = {"full", "no-correction", "corpus-curvature", "no-curvature", "no-unit-norm", "fewer-dimensions"}
    assert set(rows) == labels | {"weight-0.9", "projected-otherwise", "random"}
    assert rows["full"]["full_less"]["mrr"] == [0, 0, 0]
    mrr, full = rows["no-curvature"]["mrr"][0], rows["full"]["mrr"][0]
    assert rows["no-curvature"]["full_less"]["mrr"][0] == pytest.approx(full - mrr)
    assert sum("On a real model" in claim["claim"] for claim in summary["claims"]) == 5


def test_questions_of_ones_own_need_what_passages_are_sorted_by(tmp_path: Path):
    lines = [
        {"example_id": "1", "prompt": "The capital of Peru is", "target": "Lima", "subject": "Peru", "gold": ["d#0"]},
        {"example_id": "2", "prompt": "p", "target": "t", "subject": "s", "relation": "r"},
        {"example_id": "3", "prompt": "p", "target": "t", "subject": "s", "relation": "r", "gold": ["d#0"]},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    with pytest.raises(UserError, match=r"2 question\(s\)(.|\n)*1, 2"):
        require_records(read_queries(tmp_path / "q.jsonl"), "q.jsonl")


def asked(subject: str, relation: str, target: str, gold: tuple[str, ...], unseen: bool = False) -> Query:
    record = {"subject": subject, "relation": relation, "unseen": unseen}
    return Query(f"{subject}/{relation}", f"{subject}'s {relation} is", target, gold, record=record)


def test_what_is_left_out_is_nobody_elses_gold():
    questions = [asked(name, "r", name.lower(), (f"{name}#0",)) for name in "ABCD"]
    questions += [asked("C", "s", "x", ("both#0",)), asked("D", "r", "y", ("both#0",))]
    stated = {
        name: [statement_of(each) for each in questions if name in each.gold] for name in ("A#0", "B#0", "both#0")
    }
    for seed in range(6):
        unseen = draw_unseen(questions, stated, 1, seed)
        assert unseen <= {"A", "B"}, "C and D share a passage"
    assert draw_unseen(questions, stated, 2, 0) == {"A", "B"}
    with pytest.raises(UserError, match=r"of their own(.|\n)*2 of 4(.|\n)*unseen = 3"):
        draw_unseen(questions, stated, 3, 0)


def test_a_method_leaves_out_what_was_trained_on():
    assert first_trained(["a", "never", "b", "c"], {"never"}, 2) == ["a", "b"]


def test_the_other_question_has_nothing_in_common():
    questions = [
        asked("A", "r", "x", ("a",)),
        asked("A", "s", "y", ("a",)),
        asked("B", "r", "y", ("b",)),
        asked("B", "s", "z", ("b",)),
        asked("C", "s", "w", ("c",), unseen=True),
    ]
    assert other_questions(questions) == [3, None, None, 0, None]
