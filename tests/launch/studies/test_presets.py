"""The studies' presets for GPUs: published data, published steps, and plans that hold."""

from __future__ import annotations

import pytest

from headwater.configs import load_config
from headwater.launch.plan.report import load_plan, make_plan
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.launch.studies.acquisition.study import Acquisition
from headwater.launch.studies.storage.settings import StorageSettings
from headwater.launch.studies.storage.study import Storage
from headwater.train.facts.biographies import VARIANTS

MACHINES = ["gpus=8", "gpu=h100"]


@pytest.mark.parametrize("study", ["acquisition-1b", "storage-1b"])
def test_the_training_of_a_study_is_planned(study: str):
    plan = make_plan(*load_plan(f"study/{study}", MACHINES))
    assert 1.0e9 < plan.parameters.total < 1.5e9
    assert plan.left > 0.1 * 79.6 * 2**30
    base = "base-1b" if study == "acquisition-1b" else "storage-base-1b"
    assert plan == make_plan(*load_plan(f"study/{base}", MACHINES))


def test_overrides_of_a_study_reach_its_plan():
    small = make_plan(*load_plan("study/acquisition", ["gpus=1", "model.layers=3"]))
    assert small.settings.model.layers == 3
    assert small.settings.train.global_batch == 8, "what the study changes in its preset holds"


def test_storage_is_as_published():
    settings = load_config(StorageSettings, "study/storage-1b")
    base = Storage(settings).base
    assert (base.train.steps, base.train.global_batch, base.corpus.seq_len) == (80_000, 96, 512)
    assert (base.optimizer.lr, base.optimizer.min_lr_ratio, base.optimizer.weight_decay) == (1e-3, 0.1, 0.1)
    people = settings.population
    assert (people.people, people.first_names, people.middle_names, people.last_names) == (100_000, 400, 400, 1000)
    assert (people.years, people.cities, people.universities, people.majors, people.employers) == (
        200,
        200,
        300,
        100,
        263,
    )
    assert settings.variants == list(VARIANTS)
    assert settings.question_share == 0.8
    assert (settings.lora.embedding_rank, settings.lora.lr, settings.lora.rank) == (128, 3e-4, 8)
    assert (settings.p_probe.embedding_rank, settings.q_probe.embedding_rank) == (2, 16)


def test_acquisition_is_as_published():
    settings = load_config(AcquisitionSettings, "study/acquisition-1b", ["facts=facts.json"])
    assert (settings.interval, settings.count, settings.steps, settings.window) == (100, 10, 2500, 50)
    assert settings.probe_every == 1
    base = Acquisition(settings).base_settings
    assert (base.train.global_batch, base.corpus.seq_len) == (2048, 2048)
