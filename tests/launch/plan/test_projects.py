"""What studies, sweeps and demos train in all, against sums made by hand from their presets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.configs import ConfigError, UserError
from headwater.launch.machines.estimates import GIB
from headwater.launch.machines.layouts import PlanSettings, room
from headwater.launch.plan.projects import project_of, whole_work
from headwater.launch.plan.report import load_plan, make_plan, run_plan


def trained(config: str, *overrides: str) -> list[tuple[int, int, float]]:
    """(how many, steps, size of an update) of all trainings."""
    settings, _ = load_plan(config, ["gpus=1", *overrides])
    return [(work.count, work.steps, work.size) for work in whole_work(config, overrides, settings)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("demo", [(1, 1000, 1)]),
        # Four seeds; a base model up to step 300, then 800 steps more.
        ("study/acquisition", [(4, 300, 1), (4, 800, 1)]),
        # Six seeds, two of them up to the last of three stages and in two more sizes, at intervals, of several
        # popularities in two corpora, and with three times the batch, twice.
        (
            "study/acquisition-long",
            [(2, 1500, 1), (4, 300, 1), (6, 700, 1), (4, 360, 1), (4, 660, 1), (2, 970, 1), (4, 600, 1), (4, 700, 3)],
        ),
        # Two seeds; six arms of leaving out.
        ("study/overlearnt", [(2, 2250, 1), (2 * 6, 2250, 1)]),
        ("study/lds", [(1, 400, 1), (64, 400, 1), (24, 400, 1)]),
        # 20 people in four windows, and nothing dropped.
        ("study/exposures", [(1, 400, 1), (81, 400, 1)]),
        ("study/pretrained", [(1, 160, 1), (3, 100, 1)]),
        ("study/selection", [(5, 500, 1), (15, 500, 1)]),
        # Three seeds of three sizes; the long one leaves two lists out to the end, and one up to each of three amounts.
        ("study/tracing", [(9, 600, 1)]),
        ("study/tracing-long", [(9, 800, 1), (18, 800, 1), (9, 200, 1), (9, 400, 1), (9, 800, 1)]),
        # 16 variants, the celebrity one and 2 mixed; 17 of them fine-tuned; LoRA on 2 and the celebrity one.
        (
            "study/storage-1b",
            [(19, 80_000, 1), (17, 40_000, 1), (3, 50_000, 1), (16, 30_000, 200 / 96), (2, 30_000, 50 / 96)],
        ),
        # The same with two seeds of the main comparison, and the probes of two variants and seeds on untrained weights.
        ("study/storage", [(23, 1000, 1), (19, 200, 1), (5, 400, 6), (18 + 4, 150, 12.5), (4 + 4, 150, 6.25)]),
        # A third seed, three shares rewritten and three stretches of questions in two variants; LoRA of two more sizes;
        # P-probes of six more variants; two variants at seven sizes, most with probes of two ranks.
        (
            "study/storage-long",
            [
                *((23 + 4 + 3 + 6, 1000, 1), (19 + 2 + 3, 200, 1), (7, 400, 6), (6, 400, 6), (6, 400, 6)),
                *((20 + 6, 150, 12.5), (6 + 6 + 6, 150, 6.25)),
                *((2, 1000, 1), (4, 150, 6.25), (2, 2000, 1), (4, 150, 6.25)),
                *((2, 1000, 1), (4, 150, 6.25)) * 2,
                *((2, 3000, 1), (4, 450, 6.25)) * 2,
                *((2, 6000, 1), (2, 1350, 6.25)),
            ],
        ),
        # Three schedules and three seeds at each of three batch sizes; the preset's is 4 sequences.
        ("ablation/injection", [(9, 400, 0.5), (9, 400, 1), (9, 400, 2)]),
        ("ablation/trackstar", [(1, 1000, 1)]),
        # 16 variants and two seeds, each pretrained on, with and without questions, and fine-tuned.
        ("ablation/augmentation", [(64, 1000, 1), (32, 200, 1)]),
    ],
)
def test_all_trainings_are_counted(config: str, expected: list[tuple[int, int, float]]):
    assert trained(config) == expected


def test_a_studys_own_settings_are_heard_and_a_plain_pretraining_has_no_more():
    assert trained("study/acquisition", "seeds=[0,1]", "stages=[100,300]")[0] == (2, 300, 1)
    assert trained("study/lds", "models=10", "again=0")[1:] == [(10, 400, 1), (0, 400, 1)]
    assert trained("pretrain/tiny") == []
    assert project_of("pretrain/tiny") is None


def test_of_a_files_records_what_they_have_too_few_wordings_for_is_not_counted(tmp_path: Path):
    config = tmp_path / "published.yaml"
    config.write_text("base: study/acquisition-long\nfacts: facts.json\n")
    steps = [steps for _, steps, _ in trained("study/acquisition-long")]
    # Facts at intervals (970 steps) and of several popularities (600) are not run; no seed has the first stage alone.
    assert [each for each in steps if each not in (300, 970, 600)] == [each for _, each, _ in trained(str(config))]


def test_a_name_that_is_a_section_of_the_pretraining_is_the_studys_where_it_stands_alone():
    # Of a file's records two seeds, of invented ones four.
    assert trained("study/acquisition", "facts=facts.json") == [(2, 300, 1), (2, 800, 1)]
    given, plain = (trained("study/acquisition-long", *more) for more in (["facts=facts.json"], []))
    assert [970 in [steps for _, steps, _ in each] for each in (given, plain)] == [False, True]
    assert trained("study/pretrained", "model=weights") == trained("study/pretrained")
    settings, _ = load_plan("study/exposures", ["gpus=1", "facts.people=7"])
    assert settings.facts.people == 7
    with pytest.raises(ConfigError, match="model"):
        load_plan("pretrain/tiny", ["gpus=1", "model=weights"])


def test_days_are_counts_times_steps_times_the_steps_time(capsys: pytest.CaptureFixture[str]):
    run_plan("study/storage-1b", ["gpus=8"], as_json=True)
    printed = json.loads(capsys.readouterr().out)
    step = printed["time"]["step"]
    pretraining, tuning, *_ = printed["trainings"]
    assert pretraining["days"] == pytest.approx(19 * 80_000 * step / 86400)
    assert tuning["days"] == pytest.approx(17 * 40_000 * step / 86400)
    assert pretraining["days"] + tuning["days"] > 20 * printed["time"]["days"]
    run_plan("study/storage-1b", ["gpus=8"])
    assert "All of it, one training after another" in capsys.readouterr().out


def test_a_hard_stop_is_where_a_run_ends():
    whole = make_plan(*load_plan("pretrain/llama-1b", ["gpus=16"]))
    steps = whole.settings.train.steps
    half = make_plan(*load_plan("pretrain/llama-1b", ["gpus=16", f"train.hard_stop={steps // 2}"]))
    assert half.time.step == whole.time.step
    assert half.time.days == pytest.approx(half.time.step * (steps // 2) / 86400)
    assert half.tokens == (steps // 2) * whole.settings.train.global_batch * whole.settings.corpus.seq_len
    assert make_plan(*load_plan("pretrain/llama-1b", ["gpus=16", f"train.hard_stop={9 * steps}"])).time == whole.time


def test_a_gpu_of_ones_own(capsys: pytest.CaptureFixture[str]):
    known = make_plan(*load_plan("pretrain/llama-1b", ["gpus=16"]))
    own = make_plan(*load_plan("pretrain/llama-1b", ["gpus=16", "gpu.memory=96", "gpu.tflops=494.5"]))
    assert own.time.step == pytest.approx(2 * known.time.step), "an H100 has 989"
    assert own.left - known.left == int(96 * GIB) - int(79.6 * GIB)
    assert room(PlanSettings(gpu="a100", reserve_gib=0)) == 80 * GIB
    with pytest.raises(UserError, match=r"custom GPU \(2 GiB\)"):
        run_plan("pretrain/llama-8b", ["gpus=8", "gpu.memory=2"])


def test_near_words_are_suggested_over_machines_run_and_study(tmp_path: Path):
    for config, wrong, near in (
        ("pretrain/tiny", "gpus_per_nod=4", "gpus_per_node"),
        ("study/lds", "modles=9", "models"),
        ("pretrain/tiny", "trian.steps=2", "train"),
    ):
        with pytest.raises(ConfigError, match=f"did you mean {near}"):
            load_plan(config, [wrong])
