"""Sweeps: which cells there are, that each is run once, and what becomes of those that fail or are killed."""

from __future__ import annotations

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.configs import ConfigError, UserError, load_config
from headwater.configs.errors import MismatchError
from headwater.launch.ablate.cells import expand, prepare, short_names
from headwater.launch.ablate.process import as_asked, essence, shared_pretraining
from headwater.launch.ablate.report import conditions, describe
from headwater.launch.ablate.run import run_ablation
from headwater.launch.ablate.settings import AblateSettings, SlurmSettings
from headwater.launch.parts import pool
from headwater.launch.parts.training import is_trained
from headwater.train.artifacts import RunDir, write_json
from headwater.train.facts.biographies import VARIANTS
from headwater.train.settings import PretrainSettings
from headwater.train.tokenizer import TextTokenizer

from ...attribution.killed_builds import command
from ..forked_parts import begin, killed_when

ROOT = Path(__file__).resolve().parents[3]
SMALL = [
    "train.steps=4",
    "corpus.passages=60",
    "corpus.tokenizer.vocab_size=1024",
    "model.hidden=16",
    "model.heads=2",
    "model.ffn_hidden=32",
    "model.layers=1",
    "facts.people=2",
    "facts.distractors=0",
    "facts.queries=1",
    "callbacks.probes.every=2",
    "callbacks.metrics.tensorboard=false",
    "train.threads=1",
    "checkpoint.every=2",
]


def sweep(out: Path, **options) -> AblateSettings:
    preset = "pretrain/tiny"
    return AblateSettings(**{"out": str(out), "preset": preset, "overrides": SMALL, **options})


def test_cells_are_the_product_of_names_grid_and_seeds(tmp_path: Path):
    settings = sweep(
        tmp_path,
        cells={"small": ["model.layers=1"], "two layers": ["model.layers=2"]},
        grid={"optimizer.lr": [1e-3, 2e-3], "facts.schedule.kind": ["once", "uniform"]},
        seeds=[0, 5],
    )
    cells = expand(settings)
    assert len(cells) == 16
    assert cells[-1].name == "two-layers_lr-0.002_kind-uniform_seed-5"
    assert cells[-1].factors == {"cell": "two layers", "lr": 2e-3, "kind": "uniform", "seed": 5}
    made = cells[-1].settings
    assert (made.model.layers, made.optimizer.lr, made.facts.schedule.kind) == (2, 2e-3, "uniform")
    assert (made.seed, made.corpus.seed, made.train.steps) == (5, 5, 4)
    assert made.out == str(tmp_path / "cells" / cells[-1].name)


def test_keys_that_end_alike_keep_what_tells_them_apart():
    assert short_names(["a.lr", "b.lr", "c.steps"]) == {"a.lr": "a.lr", "b.lr": "b.lr", "c.steps": "steps"}


def test_every_wrong_cell_is_named_before_anything_runs(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        expand(sweep(tmp_path, grid={"model.heads": [3, 2, 5]}))
    assert "heads-3: model.hidden" in str(caught.value)
    assert "heads-5: model.hidden" in str(caught.value)
    assert not (tmp_path / "cells").exists()
    with pytest.raises(UserError, match="same name"):
        expand(sweep(tmp_path, seeds=[1, 1]))
    path = tmp_path / "bad.yaml"
    path.write_text("grid: {train.steps: 5}\ncells: {a: x}\n")
    with pytest.raises(ConfigError, match="a list of values"):
        load_config(AblateSettings, path)


def test_a_directory_of_another_cell_is_refused(tmp_path: Path):
    prepare(sweep(tmp_path), expand(sweep(tmp_path))[0])
    prepare(sweep(tmp_path), expand(sweep(tmp_path))[0])
    other = sweep(tmp_path, overrides=[*SMALL, "optimizer.lr=0.5"])
    with pytest.raises(MismatchError, match="other settings"):
        prepare(other, expand(other)[0])


def test_conditions_put_seeds_together():
    rows = [
        {"factors": {"a": 1, "seed": 0}, "state": "finished", "metrics": {"m": 1.0}},
        {"factors": {"a": 1, "seed": 1}, "state": "finished", "metrics": {"m": 4.0}},
        {"factors": {"a": 2, "seed": 0}, "state": "failed", "metrics": {}},
    ]
    one, two = conditions(rows, ["a"], ["m"])
    assert one["metrics"]["m"] == [2.5, 1.0, 4.0]
    assert (two["metrics"], two["finished"], two["cells"]) == ({}, 0, 1)


def test_shipped_sweeps_can_be_configured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    trackstar = expand(load_config(AblateSettings, "ablation/trackstar"))
    assert len(trackstar) == 60
    assert {cell.settings.index.correction for cell in trackstar} == {"none", "adafactor", "adam"}
    assert {(cell.settings.index.curvature.kind, cell.settings.trace.curvature) for cell in trackstar} == {
        ("none", "none"),
        ("full", "train"),
        ("full", "task"),
        ("kronecker", "train"),
        ("kronecker", "task"),
    }
    assert len({json.dumps(essence(cell.pretraining)) for cell in trackstar}) == 1, "one pretraining serves them all"
    budget = expand(load_config(AblateSettings, "ablation/budget"))
    assert {(cell.settings.index.budget, *cell.settings.index.codecs) for cell in budget} >= {
        (1024, "sign"),
        (8192, "int8"),
    }
    injection = expand(load_config(AblateSettings, "ablation/injection"))
    assert len(injection) == 27
    assert {cell.settings.facts.schedule.kind for cell in injection} == {"duplicate", "paraphrase", "once"}


def test_a_sweep_is_one_array_job(tmp_path: Path):
    slurm = SlurmSettings(enabled=True, gpus_per_node=2, partition="long", sbatch=["qos=low"], at_once=3)
    settings = sweep(tmp_path / "a", slurm=slurm, grid={"train.steps": [3, 5]})
    assert run_ablation(settings) == 0
    script, listed = tmp_path / "a/launch.sbatch", (tmp_path / "a/array.txt").read_text().splitlines()
    lines = script.read_text().splitlines()
    for option in ("gpus-per-node=2", "array=0-1%3", "partition=long", "qos=low"):
        assert f"#SBATCH --{option}" in lines
    assert not any("exclusive" in line for line in lines)
    assert listed == [str(tmp_path / f"a/cells/steps-{steps}/launch.sh") for steps in (3, 5)]
    text = Path(listed[1]).read_text()
    assert "train.steps=5" in text
    assert "headwater.train" in text
    traced = sweep(tmp_path / "b", slurm=slurm, kind="trace", preset="demo", overrides=[])
    assert run_ablation(traced) == 0
    for each in (script, *map(Path, listed), tmp_path / "b/launch.sbatch", tmp_path / "b/cells/seed-0/launch.sh"):
        subprocess.run(["bash", "-n", str(each)], check=True)
    assert "headwater.launch.ablate.process" in (tmp_path / "b/cells/seed-0/launch.sh").read_text()


def test_a_task_of_a_chain_submits_itself_alone(tmp_path: Path):
    """Also after cells have been finished: each keeps its number."""
    slurm = SlurmSettings(enabled=True, chain=True)
    settings = sweep(tmp_path / "a", slurm=slurm, grid={"train.steps": [3, 5, 7, 9]})
    done = [cell for cell in expand(settings) if cell.factors["steps"] in (3, 7)]
    for cell in done:
        write_json(cell.path / f"checkpoints/step-{cell.factors['steps']:08d}/checkpoint.json", {})
    assert run_ablation(settings) == 0
    script = tmp_path / "a/launch.sbatch"
    assert "#SBATCH --array=1,3" in script.read_text().splitlines()
    lines = (tmp_path / "a/array.txt").read_text().splitlines()
    assert [Path(line).parent.name for line in lines] == [f"steps-{steps}" for steps in (3, 5, 7, 9)]
    text = Path(lines[3]).read_text()
    assert f'next=$(sbatch --parsable --array="$SLURM_ARRAY_TASK_ID" {script})' in text
    assert f"from where you may: sbatch --array=$SLURM_ARRAY_TASK_ID {script}" in text
    assert not Path(lines[0]).exists()
    with pytest.raises(UserError, match=r"--chain of a sweep\n.*kind=trace"):
        run_ablation(sweep(tmp_path / "b", slurm=slurm, kind="trace", preset="demo", overrides=[]))
    with pytest.raises(ConfigError, match=r"slurm\.at_once = 2: expected 0 with --chain"):
        run_ablation(sweep(tmp_path / "b", slurm=SlurmSettings(enabled=True, chain=True, at_once=2)))
    assert not (tmp_path / "b").exists()


def test_a_sweep_whose_cells_cannot_work_is_not_submitted(tmp_path: Path):
    slurm = SlurmSettings(enabled=True, gpus_per_node=3)
    with pytest.raises(ConfigError, match="a multiple of"):
        run_ablation(sweep(tmp_path / "a", slurm=slurm, overrides=["train.global_batch=4", "train.micro_batch=1"]))
    assert not (tmp_path / "a").exists()


def test_a_vocabulary_that_the_tokenizer_settled_makes_no_other_pretraining(tmp_path: Path, tiny_run: Path):
    """A run writes down the size that `model.vocab_size=0` has become; a size that was asked for is another matter."""
    run = RunDir.at(tiny_run)
    made = load_config(PretrainSettings, run.config)
    assert made.model.vocab_size == TextTokenizer.from_file(run.tokenizer).vocab_size
    asked = replace(made, model=replace(made.model, vocab_size=0))
    assert essence(as_asked(run, asked)) == essence(asked)
    assert shared_pretraining(asked, tmp_path, str(tiny_run)) == tiny_run
    padded = replace(made, model=replace(made.model, vocab_size=made.model.vocab_size + 64))
    assert essence(as_asked(run, padded)) != essence(padded)


def test_a_run_of_other_settings_is_not_taken_for_the_cells_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from headwater.configs import save_config

    cell, other = expand(sweep(tmp_path, seeds=[0, 1]))
    run = tmp_path / "run"
    save_config(cell.settings, run / "config.yaml")
    (run / "checkpoints/step-00000004").mkdir(parents=True)
    (run / "checkpoints/step-00000004/checkpoint.json").write_text("{}")
    assert shared_pretraining(cell.settings, tmp_path / "shared", str(run)) == run
    asked = []

    def pretrain(settings):
        asked.append(settings)
        path = Path(settings.out) / "checkpoints/step-00000004/checkpoint.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        return 0

    monkeypatch.setattr("headwater.train.__main__.pretrain", pretrain)
    own = shared_pretraining(other.settings, tmp_path / "shared", str(run))
    assert own.parent == tmp_path / "shared"
    assert shared_pretraining(other.settings, tmp_path / "shared", str(run)) == own
    assert len(asked) == 1, "pretrained once"


@pytest.mark.slow
def test_a_failing_cell_is_named_a_killed_sweep_goes_on_and_finished_cells_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, out = tmp_path / "sweep.yaml", tmp_path / "sweep"
    broken = f"corpus.tokenizer.path={tmp_path}/absent.json"
    lines = [f"out: {out}", "preset: pretrain/tiny", f"overrides: {json.dumps(SMALL)}"]
    cells = {"whole": [], "broken": [broken]}
    config.write_text("\n".join([*lines, f"cells: {json.dumps(cells)}"]))
    with monkeypatch.context() as patch:
        saved = killed_when(lambda path: (path / "checkpoints/step-00000002/checkpoint.json").exists())
        patch.setattr(pool, "begin", saved)
        with pytest.raises(KeyboardInterrupt):
            run_ablation(load_config(AblateSettings, config))
    assert [path.name for path in (out / "cells").iterdir() if (path / "checkpoints").exists()] == ["whole"]
    assert not (out / "table.json").exists()
    monkeypatch.setattr(pool, "begin", begin)
    assert command(["ablate", str(config)], str(tmp_path)) == 1
    assert "failed: broken" in (tmp_path / "out").read_text()
    table = json.loads((out / "table.json").read_text())
    states = {row["name"]: row["state"] for row in table["cells"]}
    assert states == {"broken": "failed", "whole": "finished"}
    assert "absent.json" in table["failed"]["broken"]
    rows = list(csv.DictReader((out / "cells.csv").open()))
    assert [row["state"] for row in rows] == ["finished", "failed"]
    assert float(rows[0]["loss"]) > 0
    assert rows[1]["loss"] == ""
    assert (out / "plots/loss.svg").stat().st_size > 1000
    # What is finished is not touched again: only the broken cell would be.
    settings = load_config(AblateSettings, config)
    assert [cell.name for cell in expand(settings) if not cell.is_done()] == ["broken"]
    log = (out / "cells/whole/log.txt").read_text()
    assert log.count("step 4/4") == 1


@pytest.mark.slow
def test_trace_cells_share_the_pretraining_and_the_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool, "begin", begin)
    settings = sweep(
        tmp_path,
        kind="trace",
        preset="demo",
        overrides=[
            "preset=pretrain/tiny",
            *(f"pretrain.{each}" for each in SMALL),
            "index.projection.dims=4",
            "evaluate.tail_patch.queries=1",
            "evaluate.tail_patch.top=1",
        ],
        grid={"trace.curvature": ["task", "none"], "trace.normalize": [True, False]},
        parallel=2,
    )
    failed = run_ablation(settings)
    logs = "\n".join(path.read_text()[-2000:] for path in tmp_path.glob("cells/*/log.txt"))
    assert failed == 0, logs
    assert len(list(tmp_path.glob("shared/pretrain-*/checkpoints"))) == 1
    assert len(list(tmp_path.glob("shared/index-*/index.json"))) == 1
    cell = tmp_path / "cells/curvature-task_normalize-True"
    assert (cell / "index/headwater/index.json").exists()
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["factors"] == ["curvature", "normalize"]
    assert all(0 < row["metrics"]["mrr"] <= 1 for row in table["cells"])
    assert len({row["metrics"]["bm25 mrr"] for row in table["cells"]}) == 1
    assert "tail_patch" in table["metrics"]
    assert "curvature" in capsys.readouterr().out


def test_storage_cells_are_studies_of_one_variant_each(tmp_path: Path):
    settings = load_config(AblateSettings, "ablation/augmentation", [f"out={tmp_path}"])
    cells = expand(settings)
    assert len(cells) == 32
    assert {cell.factors["cell"] for cell in cells} == set(VARIANTS)
    cell = next(each for each in cells if each.name == "multi5+permute+fullname_seed-1")
    assert cell.settings.variants == cell.settings.mixed == ["multi5+permute+fullname"]
    assert cell.settings.seeds == [1]
    assert not cell.settings.celebrity
    assert cell.pretraining.model.hidden == cells[0].pretraining.model.hidden
    prepare(settings, cell)
    assert not cell.is_done()
    rows = {"mixed": {"asked": [0.8, 0.7, 0.9]}, "full": {"asked": [0.5, 0.4, 0.6]}}
    summary = {
        "accuracy": {"multi5+permute+fullname": rows},
        "q_probes": {},
        "recall": {"mixed": {"multi5+permute+fullname": {"next_token": 0.9}}},
        "majority": {"mean": 0.1},
    }
    (cell.path / "summary.json").write_text(json.dumps(summary))
    assert cell.is_done()
    row = describe("storage", cell)
    assert row["metrics"] == {"mixed exact": 0.8, "full exact": 0.5, "next_token": 0.9, "majority": 0.1}
    with pytest.raises(UserError, match="multi6x"):
        expand(load_config(AblateSettings, "ablation/augmentation", ["cells={bad: ['mixed=[multi6x]']}"]))


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path: Path):
    settings = load_config(PretrainSettings, "pretrain/tiny", ["train.steps=4", f"out={tmp_path}"])
    for name in ("step-00000002", "step-00000004.part"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "checkpoint.json").write_text("{}")
    assert not is_trained(tmp_path, settings)
    (tmp_path / "checkpoints/step-00000004.part").rename(tmp_path / "checkpoints/step-00000004")
    assert is_trained(tmp_path, settings)
