"""The acquisition study: measures against hand values and planted laws, its records, and a study from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from headwater.attribution.evaluation.bootstrap import cluster_bootstrap
from headwater.configs import ConfigError, MissingError, UserError, load_config
from headwater.configs.errors import CorruptError
from headwater.launch.cli import commands as cli
from headwater.launch.studies.acquisition.claims import NOT_REPRODUCED, NOT_TESTABLE, judge
from headwater.launch.studies.acquisition.metrics import (
    effectivity,
    fit_exponential,
    fit_power,
    local_maximum,
    r_squared,
    retainability,
)
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.launch.studies.acquisition.study import Acquisition
from headwater.launch.studies.acquisition.summary import Measured, effects, pool, summarise
from headwater.launch.studies.verdict import REPRODUCED
from headwater.train.facts.fictional import (
    STATEMENTS,
    as_facts,
    assign_scenarios,
    fictional_schedule,
    make_records,
    read_records,
)

STEPS = np.array([0, 1, 2, 4, 6, 8, 10, 12])
CURVE = np.array([-5.0, -4.0, -3.0, -3.5, -4.5, -2.0, -3.0, -4.0])


def test_local_maximum_effectivity_and_retention_by_hand():
    assert local_maximum(STEPS, CURVE, 0, 4) == 2
    assert local_maximum(STEPS, CURVE, 0, 8) == 8, "the window's last step counts"
    assert local_maximum(STEPS, CURVE, 2, 4) == 4, "the step of the injection itself does not"
    assert effectivity(STEPS, CURVE, 0, 4) == 2.0
    assert effectivity(STEPS, CURVE, 6, 4) == 2.5
    t, kept = retainability(STEPS, CURVE, [0, 6], 4, 0.1)
    assert t.tolist() == [2, 4]
    assert kept.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert retainability(STEPS, CURVE, [0, 6], 4, 3.5) is None
    with pytest.raises(ValueError, match="step 3 was not measured"):
        effectivity(STEPS, CURVE, 3, 4)
    with pytest.raises(ValueError, match="no step was measured"):
        local_maximum(STEPS, CURVE, 12, 4)


def test_a_planted_maximum_is_found_in_noise():
    rng = np.random.default_rng(3)
    curve = rng.normal(size=300) * 0.1
    curve[137] += 2
    assert local_maximum(np.arange(300), curve, 100, 50) == 137


def test_planted_laws_give_back_their_constants():
    t = np.unique(np.geomspace(1, 1000, 40).astype(int))
    power = fit_power(t, 0.9 - 0.25 * np.log10(t))
    assert (power.level, power.decay, power.r2) == pytest.approx((0.9, 0.25, 1.0))
    assert power.x_intercept == pytest.approx(10**3.6)
    decaying = fit_exponential(t, 0.8 * np.exp(-t / 130))
    assert (decaying.level, 1 / decaying.decay) == pytest.approx((0.8, 130), rel=1e-3)
    # Each law explains its own data better than the other's.
    assert fit_exponential(t, power.at(t)).r2 < 0.95
    assert fit_power(t, decaying.at(t)).r2 < 0.95 < decaying.r2
    assert fit_power(t, np.full(len(t), 0.5)).x_intercept == float("inf")
    with pytest.raises(ValueError, match="three finite points"):
        fit_power(np.array([0, 1, 2]), np.array([1.0, 0.5, 0.2]))


def test_the_exponential_fit_agrees_with_scipy():
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(0)
    t = np.unique(np.geomspace(1, 400, 30).astype(int))
    noisy = 0.7 * np.exp(-t / 60) + rng.normal(size=len(t)) * 0.03
    (level, decay), _ = curve_fit(lambda x, a, b: a * np.exp(-b * x), t, noisy, p0=(0.5, 0.01))
    fit = fit_exponential(t, noisy)
    assert (fit.level, fit.decay) == pytest.approx((level, decay), rel=1e-3)
    assert r_squared(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])) == 0.5


def test_intervals_draw_records_not_probes():
    owner = np.repeat(np.arange(8), 20)
    values = np.repeat(np.arange(8.0), 20)
    mean, low, high = cluster_bootstrap(owner, lambda n: values[n].mean())
    apart = cluster_bootstrap(np.arange(160), lambda n: values[n].mean())
    assert mean == apart[0] == 3.5
    # The standard error of a mean of eight records, whatever the number of their probes.
    assert high - low == pytest.approx(2 * 1.96 * np.arange(8.0).std() / np.sqrt(8), rel=0.15)
    assert apart[2] - apart[1] < (high - low) / 3


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


def test_the_published_format_is_read_and_scenarios_are_as_published(tmp_path: Path):
    records = read_records(published(tmp_path / "facts.json", 130, 40))
    scenarios = assign_scenarios(records, control=10)
    expected = ["paraphrase"] * 40 + ["duplicate"] * 40 + ["once"] * 40 + ["control"] * 10
    assert scenarios == expected
    made, left_out = as_facts(records, scenarios)
    assert left_out == 3 * 130, "half of the probes hold their target"
    assert len(made.probes) == 3 * 130
    assert len(made.passages) == 40 * 3 + 80
    assert not [p for p in made.passages if p.id.startswith("fictional/00125")]
    schedule = fictional_schedule(records, scenarios, start=7, interval=100, count=10)
    assert sorted(set(schedule.steps.tolist())) == [7 + 100 * turn for turn in range(10)]
    assert [i for i in schedule.passage_ids if i.startswith("fictional/00003#")] == [
        f"fictional/00003#{turn % 3}" for turn in range(10)
    ]
    assert schedule.passage_ids.count("fictional/00050#0") == 10
    assert schedule.passage_ids.count("fictional/00100#0") == 1
    with pytest.raises(UserError, match="too few records"):
        assign_scenarios(records[:2], 0)


def test_a_damaged_file_of_records_is_named(tmp_path: Path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([{"train_context": "a", "mem_input": ["b"], "mem_target": []}]))
    with pytest.raises(CorruptError, match="record 0"):
        read_records(path)
    path.write_text("[")
    with pytest.raises(CorruptError, match="not JSON"):
        read_records(path)


def planted(rng: np.random.Generator, jump: dict[str, float], records: int = 12) -> Measured:
    """Probes that rise by `jump` at each injection (a control never) and fall by a law in log10 of the steps since."""
    steps = np.arange(0, 301)
    rows, owner, depth, scenario = [], [], [], []
    for record in range(records):
        name = ("duplicate", "once", "paraphrase", "control")[record % 4]
        for probe_depth, size in jump.items():
            for _ in range(3):
                curve = rng.normal(size=len(steps)) * 0.02 - 6
                for step in {"control": [], "once": [0]}.get(name, [0, 50]):
                    since = np.maximum(steps - step, 1)
                    curve += np.where(steps > step, size * np.maximum(1 - 0.3 * np.log10(since), 0), 0)
                rows.append(curve)
                owner.append(record)
                depth.append(probe_depth)
                scenario.append(name)
    return Measured(steps, np.array(rows), np.array(owner), np.array(depth), np.array(scenario), [0, 50])


def test_a_planted_study_gives_back_its_law_and_its_claims():
    rng = np.random.default_rng(0)
    measured = planted(rng, {"memorization": 2.0, "semantic": 1.0, "composition": 0.5})
    effect = effects(measured, 50)
    assert np.isnan(effect[measured.scenario_P == "once", 1]).all()
    settings = AcquisitionSettings(count=2, interval=50, steps=300, resamples=100)
    found = summarise(measured, settings)
    group = found["groups"]["once/memorization"]
    assert group["first_effectivity"][0] == pytest.approx(2.0, abs=0.1)
    assert group["decay"][0] == pytest.approx(0.3, abs=0.05)
    assert group["power"]["r2"] > 0.98
    assert abs(found["groups"]["control/memorization"]["first_effectivity"][0]) < 0.1
    assert "decay" not in found["groups"]["control/memorization"]
    condition = {"label": "x", "stage": 1, "batch": 4, "copies": 1, **found}
    summary = {
        "conditions": [condition],
        "settings": {"facts": "", "count": 2, "interval": 50, "window": 50, "probe_every": 1},
        "model": {"layers": 1, "hidden": 2, "batch": 4, "seq_len": 8},
        "leaking_probes_left_out": 0,
    }
    status = {claim["claim"]: claim["status"] for claim in judge(summary)}
    assert status["Effectivity: memorization > semantic"] == REPRODUCED
    assert status["Forgetting of memorization: a power law fits better than an exponential"] == REPRODUCED
    assert status["Duplicates are forgotten faster than paraphrases"] == NOT_REPRODUCED, "none was planted"
    assert status["Larger models gain more"] == status["A larger batch forgets more slowly"] == NOT_TESTABLE
    assert all("instead of OLMo" in claim["differs"] for claim in judge(summary))
    # The claim fails where the order is planted the other way round.
    turned = summarise(planted(rng, {"memorization": 1.0, "semantic": 2.0, "composition": 0.5}), settings)
    assert turned["comparisons"]["E memorization - semantic"][2] < 0


def test_pooled_seeds_keep_their_records_apart():
    rng = np.random.default_rng(0)
    one = planted(rng, {"memorization": 1.0}, records=4)
    both = pool([one, one])
    assert len(np.unique(both.owner_P)) == 8
    assert both.logprob_PS.shape[0] == 2 * one.logprob_PS.shape[0]


def test_settings_that_cannot_work_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(AcquisitionSettings, None, ["window=200", "count=30"])
    assert "window" in str(caught.value)
    assert "steps" in str(caught.value)
    with pytest.raises(UserError, match="schedule ends before"):
        Acquisition(AcquisitionSettings(preset="pretrain/tiny", out=str(tmp_path)))
    settings = load_config(AcquisitionSettings, "study/acquisition", ["batches=[6]"])
    with pytest.raises(UserError, match="multiples"):
        Acquisition(settings).parts()
    settings = load_config(AcquisitionSettings, "study/acquisition-1b", ["facts=a.json", "batches=[4096]"])
    parts = Acquisition(settings).parts()
    assert [(part.batch, part.copies) for part in parts] == [(2048, 1), (4096, 1), (4096, 2)]


TINY = [
    "facts.people=0",
    "facts.distractors=0",
    "train.steps=40",
    "train.threads=1",
    "train.global_batch=4",
    "corpus.seq_len=320",
    "corpus.passages=80",
    "corpus.tokenizer.vocab_size=1024",
    "model.layers=1",
    "model.hidden=32",
    "model.heads=2",
    "model.ffn_hidden=64",
    "optimizer.lr=5e-3",
    "optimizer.schedule=constant",
    "callbacks.metrics.tensorboard=false",
]


@pytest.mark.slow
def test_a_study_from_end_to_end_killed_in_the_middle(tmp_path: Path):
    out = tmp_path / "study"
    small = ["records=6", "control=1", "stages=[4]", "interval=8", "count=2", "window=8", "steps=24", "probe_every=4"]
    small += ["dense=2", "checkpoint_every=4", "resamples=10", "preset=pretrain/tiny"]
    small += [f"out={out}", f"pretrain={json.dumps(TINY)}"]
    code = "from headwater.launch.cli import main; main()"
    config = "study/acquisition"
    command = [sys.executable, "-c", code, "study", "acquisition", config, *small, "seeds=[0]"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    part = out / "seed-0/stage-4"
    end = time.monotonic() + 150
    while not list(part.glob("checkpoints/step-0000001?/checkpoint.json")):
        assert killed.poll() is None, "the study ended early"
        assert time.monotonic() < end, "the study never came to its injections"
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (out / "summary.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "negative control" in again.stdout
    check_study(out, part)
    # Its summary is a function of the runs: once more, and it is the same but for the clock.
    first = json.loads((out / "summary.json").read_text())
    cli.app(["study", "acquisition", config, *small, "seeds=[0]"], standalone_mode=False)
    assert json.loads((out / "summary.json").read_text()) == first


def check_study(out: Path, part: Path) -> None:
    import pyarrow.parquet as pq

    probes = pq.read_table(part / "probes.parquet")
    steps = np.unique(probes["step"].to_numpy())
    # Dense after the injections at 4 and 12, every fourth step elsewhere; the first before anything is injected.
    assert steps.tolist() == [4, 5, 6, 8, 12, 13, 14, 16, 20, 24, 28]
    counts = np.bincount(probes["step"].to_numpy())
    assert set(counts[steps]) == {6 * 14}, "every probe once at every step, also after the kill"
    ledger = pq.read_table(part / "ledger")
    injected = ledger.filter(ledger["injected"])["step"].to_numpy()
    # A batch injected after t updates is update t + 1: two of three scenarios come again.
    assert sorted(np.unique(injected)) == [5, 13]
    assert (injected == 5).sum() == 5
    assert (injected == 13).sum() == sum(each in ("duplicate", "paraphrase") for each in scenarios(part))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["scenarios"]["control"] == 1
    assert 0 < summary["probing_share"] < 1
    assert {claim["status"] for claim in summary["claims"]} <= {REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE}
    page = (out / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "differs from the paper in" in page
    assert (out / "report/curves-0.png").stat().st_size > 5000


def scenarios(part: Path) -> list[str]:
    return json.loads((part / "part.json").read_text())["scenarios"]


def test_records_are_looked_at_before_anything_is_pretrained(tmp_path: Path):
    out = tmp_path / "study"
    asked = {"preset": "pretrain/tiny", "pretrain": ["train.steps=3000"], "out": str(out)}
    for facts, message in (
        (tmp_path / "missing.json", "is missing"),
        (published(tmp_path / "few.json", 4, 2), "too few records"),
    ):
        settings = AcquisitionSettings(**asked, facts=str(facts), records=9)
        with pytest.raises(UserError, match=message):
            Acquisition(settings).run()
        assert not out.exists()


def test_a_run_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(MissingError, match="nowhere is not a run directory"):
        Acquisition(AcquisitionSettings(run=str(tmp_path / "nowhere"), out=str(tmp_path)))
