"""The acquisition study: its records and their meetings, what it refuses, and a study from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headwater.configs import ConfigError, MissingError, UserError, load_config
from headwater.configs.errors import CorruptError
from headwater.launch.studies.acquisition import page as page_module
from headwater.launch.studies.acquisition import study as study_module
from headwater.launch.studies.acquisition.continued import StudyProbes
from headwater.launch.studies.acquisition.fitting import check_fit
from headwater.launch.studies.acquisition.parts import TASK
from headwater.launch.studies.acquisition.process import make_part
from headwater.launch.studies.acquisition.records import familiar_texts, records_of
from headwater.launch.studies.acquisition.settings import (
    AcquisitionSettings,
    PopularitySettings,
    PublishedSettings,
    SpacingSettings,
)
from headwater.launch.studies.acquisition.study import Acquisition, run_acquisition
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from headwater.train.facts.fictional import (
    COMPOSITIONS,
    STATEMENTS,
    as_facts,
    assign_scenarios,
    make_records,
    meeting_schedule,
    read_records,
    scenario_meetings,
)
from headwater.train.facts.injection import Schedule
from headwater.train.facts.types import FactPassage
from headwater.train.tokenizer import train_tokenizer

from .here import finisher, write_texts


def test_invented_records_say_the_same_in_as_many_words_and_leak_nothing():
    records = make_records(6, seed=1)
    assert all(len({len(phrase.split()) for phrase in each.phrases}) == 1 for each in STATEMENTS)
    assert all(len(set(each.phrases)) == 10 for each in STATEMENTS)
    assert not any(phrase in each.reworded for each in STATEMENTS for phrase in each.phrases)
    for record in records:
        texts = [record.text, *record.paraphrases]
        assert len(set(texts)) == 10
        assert len({len(text.split()) for text in texts}) == 1, "paraphrases are no shorter"
        for question in record.questions:
            assert not question.leaks
            stated = f"{question.prompt} {question.target}."
            assert all(question.target in text for text in texts)
            assert (stated in record.text) == (question.depth == "memorization")
            assert not any(stated in text for text in texts) or question.depth == "memorization"
    assert [r.text for r in records] == [r.text for r in make_records(6, seed=1)]
    assert records[0].text != make_records(6, seed=2)[0].text


def published(path: Path, count: int, able: int) -> Path:
    """A file of the published format; the first `able` records have paraphrases."""
    entries = []
    for n in range(count):
        entry = {"train_context": f"The Zor{n} sings in Bek{n}.", "paraphrases": [f"In Bek{n} sings the Zor{n}."] * 2}
        if n >= able:
            del entry["paraphrases"]
        for field in ("mem", "gen", "hard_gen"):
            entry[f"{field}_input"] = [f"The Zor{n} sings in", f"Bek{n} hears in"]
            entry[f"{field}_target"] = [f"Bek{n}", f"Bek{n}"]
        entries.append(entry)
    path.write_text(json.dumps(entries))
    return path


def test_composition_prompts_end_in_words_that_no_record_has():
    ends = {phrase.split()[-1] for each in STATEMENTS for phrase in each.phrases}
    assert not ends & {prompt.split()[-1] for prompt, _ in COMPOSITIONS}
    text = " ".join(" ".join([record.text, *record.paraphrases]) for record in make_records(4, seed=0))
    for prompt, _ in COMPOSITIONS:
        assert " ".join(prompt.split()[-2:]) not in text


def test_the_published_format_is_read_and_scenarios_are_as_published(tmp_path: Path):
    records = read_records(published(tmp_path / "facts.json", 130, 40))
    scenarios = assign_scenarios(records, control=4)
    expected = ["paraphrase"] * 40 + ["duplicate"] * 40 + ["once"] * 40 + ["control"] * 10
    assert scenarios == expected, "by number, whatever control says"
    meetings = scenario_meetings(scenarios, interval=100, count=10)
    made, left_out = as_facts(records, meetings)
    assert len(left_out) == 3 * 130, "half of the probes hold their target"
    assert left_out[0] == "record 0, memorization: Bek0 hears in [Bek0]", "each is named"
    assert len(made.probes) == 3 * 130
    assert len(made.passages) == 40 * 3 + 80
    assert not [p for p in made.passages if p.id.startswith("fictional/00125")]
    schedule = meeting_schedule(records, meetings, start=7)
    assert sorted(set(schedule.steps.tolist())) == [7 + 100 * turn for turn in range(10)]
    assert [i for i in schedule.passage_ids if i.startswith("fictional/00003#")] == [
        f"fictional/00003#{turn % 3}" for turn in range(10)
    ]
    assert schedule.passage_ids.count("fictional/00050#0") == 10
    assert schedule.passage_ids.count("fictional/00100#0") == 1
    assert meeting_schedule(records, meetings, start=7, copies=3).passage_ids.count("fictional/00050#0") == 30
    with pytest.raises(UserError, match="too few records"):
        assign_scenarios(records[:2], 0)
    with pytest.raises(UserError, match="record 0 has none"):
        assign_scenarios(records[::-1], 0)


def test_records_dealt_out_keep_their_distance_and_a_step_shows_one_of_each_scenario(tmp_path: Path):
    # As the published sample: ten of each scenario and none left over, so that controls are invented.
    path = published(tmp_path / "facts.json", 30, 10)
    settings = load_config(AcquisitionSettings, "study/acquisition", [f"facts={path}"])
    part = Acquisition(settings).continued()[0]
    records, meetings = records_of(settings, part)
    assert [meeting.group for meeting in meetings] == [
        name for name in ("paraphrase", "duplicate", "once") for _ in range(10)
    ] + ["control"] * 4
    assert not any(record.text in path.read_text() for record in records[30:])
    schedule = meeting_schedule(records, meetings, start=0)
    steps, shown = np.unique(schedule.steps, return_counts=True)
    assert steps.tolist() == [turn * 50 + shift for turn in range(6) for shift in range(10)]
    assert set(shown[:10]) == {3}
    assert set(shown[10:]) == {2}
    assert all(set(np.diff(meeting.steps)) <= {50} for meeting in meetings)
    few = load_config(AcquisitionSettings, "study/acquisition", [f"facts={path}", "published.records=6"])
    assert [meeting.group for meeting in records_of(few, part)[1]].count("paraphrase") == 2


def test_facts_at_intervals_are_met_last_together_and_popular_ones_evenly():
    asked = AcquisitionSettings(
        preset="study/base-1b",
        spacing=SpacingSettings(intervals=[4, 10], count=3, records=6, control=2),
        popularity=PopularitySettings(meetings=[1, 4], records=4, control=2, span=40, after=10),
    )
    parts = {part.plan: part for part in Acquisition(asked).continued()}
    _, spaced = records_of(asked, parts["spacing"])
    assert spaced[0].steps == (12, 16, 20)
    assert spaced[6].steps == (0, 10, 20)
    assert max(each.steps[-1] + 10 for each in spaced if each.steps) <= asked.spacing.steps
    records, reworded = records_of(asked, parts["reworded"])
    same, copies = records_of(asked, parts["copies"])
    assert [each.text for each in records] == [each.text for each in same]
    assert [each.steps for each in reworded] == [each.steps for each in copies]
    assert [len(each.steps) for each in reworded] == [1] * 4 + [4] * 4 + [0] * 2
    assert set(np.diff(reworded[5].steps)) == {10}
    told = meeting_schedule(records, reworded, start=0).passage_ids
    assert len(set(told)) == len(told), "no passage comes twice"


def test_familiar_records_have_no_name_of_the_studys():
    asked = AcquisitionSettings(records=20, familiar=30, spacing=SpacingSettings(intervals=[2, 5]))
    texts = familiar_texts(asked, seed=3)
    assert len(set(texts)) == 30
    read = {word.strip(".") for text in texts for word in text.split()}
    assert asked.used_familiar == 30
    # No base model is trained, or it meets records of another form: nothing is read of them, at any size.
    assert replace(asked, run="runs/base").used_familiar == replace(asked, facts="facts.json").used_familiar == 0
    for count in (20, 2 * 12 + 8):
        targets = {question.target for record in make_records(count, 3) for question in record.questions}
        assert not targets & read


def test_all_damaged_records_are_named_together(tmp_path: Path):
    path = tmp_path / "facts.json"
    good = json.loads(published(path, 2, 1).read_text())
    path.write_text(json.dumps([good[0], {"train_context": "a", "mem_input": ["b"], "mem_target": []}, good[1], "c"]))
    with pytest.raises(CorruptError, match=r"record 1: .*; record 3"):
        read_records(path)
    path.write_text("[")
    with pytest.raises(CorruptError, match="not JSON"):
        read_records(path)


def test_passages_and_steps_that_do_not_fit_are_named_together():
    texts = {"a": "one two three", "b": "one " * 30, "c": "two " * 40}
    tokenizer = train_tokenizer([], 320)
    passages = [FactPassage(name, text, [], "gold") for name, text in texts.items()]
    schedule = Schedule(np.array([3, 3, 3, 5]), ["a", "a", "a", "a"])
    with pytest.raises(UserError, match=r"b: \d+ tokens; c: \d+ tokens") as caught:
        check_fit(passages, schedule, tokenizer, seq_len=64, batch=2)
    assert "corpus.seq_len=192" in str(caught.value)
    check_fit(passages[:1], schedule, tokenizer, seq_len=28, batch=2)
    with pytest.raises(UserError, match="step 3: 3 passages of 42 tokens"):
        check_fit(passages[:1], schedule, tokenizer, seq_len=27, batch=2)


def test_settings_that_cannot_work_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(AcquisitionSettings, None, ["window=200", "count=30", "spacing.intervals=[3]"])
    assert "window" in str(caught.value)
    assert "steps" in str(caught.value)
    assert "spacing.intervals" in str(caught.value)
    with pytest.raises(UserError, match="schedule ends before"):
        Acquisition(AcquisitionSettings(preset="pretrain/tiny", out=str(tmp_path)))
    settings = load_config(AcquisitionSettings, "study/acquisition", ["batches=[6]"])
    with pytest.raises(UserError, match="multiples"):
        Acquisition(settings).continued()
    settings = load_config(AcquisitionSettings, "study/acquisition-1b", ["facts=a.json", "batches=[4096]"])
    parts = Acquisition(settings).continued()
    assert [(part.batch, part.copies) for part in parts] == [(2048, 1), (4096, 1), (4096, 2)]


TINY = [
    "facts.people=0",
    "facts.distractors=0",
    "train.steps=60",
    "train.threads=1",
    "train.global_batch=4",
    "corpus.seq_len=640",
    "corpus.max_tokens=320",
    "corpus.passages=0",
    "corpus.tokenizer.vocab_size=320",
    "model.layers=1",
    "model.hidden=16",
    "model.heads=2",
    "model.ffn_hidden=32",
    "optimizer.lr=5e-3",
    "optimizer.schedule=constant",
    "callbacks.metrics.tensorboard=false",
]
SMALL = ["records=6", "control=1", "stages=[4,6]", "interval=8", "count=2", "window=8", "steps=24", "effect_steps=18"]
SMALL += ["probe_every=4", "dense=2", "checkpoint_every=4", "resamples=10", "preset=pretrain/tiny", "batches=[8]"]
SMALL += ["sizes=[{name: small, pretrain: [model.hidden=8]}]", "seeds=[0,1]", "part_seeds=1"]
SMALL += ["spacing={intervals: [2,5], count: 2, records: 3, control: 1}"]
SMALL += ["familiar=12"]
SMALL += ["popularity={meetings: [1,3], records: 3, control: 1, span: 9, after: 5}"]
REAL = ["real.records=6", "real.control=1", "real.interval=3", "real.window=3", "real.count=2", "real.steps=8"]
REAL += ["real.spread=2"]
REAL_RUN = ["corpus.passages=0", "corpus.held_out=0", "corpus.max_tokens=320", "corpus.seq_len=640"]


class Crash(Exception):
    pass


@pytest.mark.slow
def test_a_study_from_end_to_end_broken_off_in_the_middle(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(study_module, "finish_parts", finisher(make_part, TASK))
    out, source = tmp_path / "study", write_texts(tmp_path / "texts.jsonl")
    given = [*SMALL, *REAL, f"out={out}", f"pretrain={json.dumps([*TINY, source])}", f"model={tiny_llama}"]
    given += [f"real.pretrain={json.dumps([*REAL_RUN, source])}"]
    settings = load_config(AcquisitionSettings, "study/acquisition", given)
    with monkeypatch.context() as broken:
        break_off_at(13, broken)
        with pytest.raises(Crash):
            run_acquisition(settings)
    assert not (out / "summary.json").exists()
    run_acquisition(settings)
    check_run(out / "seed-0/stage-4")
    check_summary(out)
    # Its summary is a function of the runs: once more, and it is the same.
    kept, said = [], []
    monkeypatch.setattr(page_module, "write_report", lambda settings, summary: kept.append(summary))
    Acquisition(settings, said.append).run()
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(kept[0]))
    assert sum("done before" in line for line in said) == 10


def break_off_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies at a step whose values have been noted and are not saved yet."""
    note = StudyProbes._note

    def failing(self: StudyProbes, trainer: object, at: int) -> None:
        note(self, trainer, at)
        if at == step:
            raise Crash

    monkeypatch.setattr(StudyProbes, "_note", failing)


def check_run(part: Path) -> None:
    import pyarrow.parquet as pq

    probes = pq.read_table(part / "probes.parquet")
    steps = np.unique(probes["step"].to_numpy())
    # Dense after the injections at 4 and 12, every fourth step elsewhere; the first before anything is injected.
    assert steps.tolist() == [4, 5, 6, 8, 12, 13, 14, 16, 20, 24, 28]
    counts = np.bincount(probes["step"].to_numpy())
    assert set(counts[steps]) == {6 * 14}, "every probe once at every step, also after the crash"
    ledger = pq.read_table(part / "ledger")
    injected = ledger.filter(ledger["injected"])["step"].to_numpy()
    # A batch injected after t updates is update t + 1: two of three scenarios come again.
    assert sorted(np.unique(injected)) == [5, 13]
    groups = json.loads((part / "part.json").read_text())["groups"]
    assert (injected == 5).sum() == 5
    assert (injected == 13).sum() == sum(each in ("duplicate", "paraphrase") for each in groups)


def check_summary(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    assert summary["scenarios"]["control"] == 1
    assert 0 < summary["probing_share"] < 1
    labels = [each["label"] for each in summary["conditions"]]
    assert labels == [
        "stage 4, batch 4",
        "stage 6, batch 4",
        "stage 4, batch 4, size small",
        "stage 4, batch 4, spacing",
        "stage 4, batch 4, copies",
        "stage 4, batch 4, reworded",
        "stage 4, batch 8",
        "stage 4, batch 8, 2 copies",
        "real model",
    ]
    assert [each["seeds"] for each in summary["conditions"]] == [[0, 1]] + [[0]] * 8
    parameters = [each["parameters"] for each in summary["conditions"]]
    assert parameters[2] < parameters[0] == parameters[1]
    assert {claim["status"] for claim in summary["claims"]} <= {REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE}
    real = [claim for claim in summary["claims"] if "real pretrained model" in claim["claim"]]
    assert len(real) == 4
    assert None not in summary["measures"].values(), "every comparison was run"
    # The same number of injections in the larger batch, or the same share: twice as many.
    numbers = [visits(out / f"seed-0/stage-4_batch-8_copies-{copies}") for copies in (1, 2)]
    assert numbers == [visits(out / "seed-0/stage-4"), 2 * visits(out / "seed-0/stage-4")]
    page = (out / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 5 + len(labels) + 6
    assert all(text in page for text in ("differs from the paper in", "negative control", "by how often it was met"))
    assert (out / "report/curves-0.png").stat().st_size > 5000


def visits(part: Path) -> int:
    import pyarrow.parquet as pq

    ledger = pq.read_table(part / "ledger")
    return sum(ledger["injected"].to_pylist())


def test_records_are_looked_at_before_anything_is_pretrained(tmp_path: Path):
    out = tmp_path / "study"
    asked = {"preset": "pretrain/tiny", "pretrain": ["train.steps=3000"], "out": str(out)}
    for facts, message in (
        (tmp_path / "missing.json", "is missing"),
        (published(tmp_path / "few.json", 4, 2), "too few records"),
    ):
        settings = AcquisitionSettings(**asked, facts=str(facts), published=PublishedSettings(records=9))
        with pytest.raises(UserError, match=message):
            Acquisition(settings).run()
        assert not out.exists()


def test_a_run_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(MissingError, match="nowhere is not a run directory"):
        Acquisition(AcquisitionSettings(run=str(tmp_path / "nowhere"), out=str(tmp_path)))


def test_a_real_model_that_is_not_there_is_missed_before_anything_is_written(tmp_path: Path):
    out = tmp_path / "study"
    settings = load_config(AcquisitionSettings, "study/acquisition", ["model=nowhere", f"out={out}"])
    with pytest.raises(MissingError, match="nowhere"):
        Acquisition(settings).run()
    assert not out.exists()
