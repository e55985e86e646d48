"""`model.precision=auto`: the faster format is taken, noted, and kept to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headwater.attribution.index import precision
from headwater.attribution.index.build import build_index
from headwater.attribution.index.reader import open_index
from headwater.attribution.settings import IndexSettings, ProjectionSettings, TracedCorpusSettings, TracedModelSettings
from headwater.configs.errors import UserError
from headwater.train.artifacts import read_json


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> IndexSettings:
    documents = tmp_path / "docs.jsonl"
    lines = (json.dumps({"id": f"d{n}", "text": f"the river of number {n} is {n * n} miles long"}) for n in range(9))
    documents.write_text("\n".join(lines))
    return IndexSettings(
        out=str(tmp_path / "index"),
        model=TracedModelSettings(path=str(tiny_llama), precision="auto"),
        corpus=TracedCorpusSettings(path=str(documents), max_tokens=40),
        projection=ProjectionSettings(dims=4),
        batch_tokens=128,
    )


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_the_faster_is_taken_and_a_build_that_goes_on_keeps_to_it(
    settings: IndexSettings, faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def speed(settings: IndexSettings, each: str, world: object) -> float:
        return 2.0 if each == faster else 1.0

    monkeypatch.setattr(precision, "tokens_per_s", speed)
    out = build_index(settings)
    assert read_json(out / "precision.json") == {
        "precision": faster,
        "tokens_per_s": {"fp32": 2.0 if faster == "fp32" else 1.0, "bf16": 2.0 if faster == "bf16" else 1.0},
    }
    given = replace(settings, out=str(tmp_path / "given"), model=replace(settings.model, precision=faster))
    auto, plain = open_index(out), open_index(build_index(given))
    assert auto.manifest["model"]["precision"] == faster
    assert torch.equal(auto.rows(0, 9), plain.rows(0, 9))

    monkeypatch.setattr(precision, "tokens_per_s", lambda *_: pytest.fail("it was tried again"))
    build_index(settings)
    (out / "index.json").unlink()  # killed while the curvature was made
    build_index(settings)
    assert open_index(out).manifest["model"]["precision"] == faster


def test_it_is_tried_on_rows_of_this_model(settings: IndexSettings):
    out = build_index(settings)
    tried = read_json(out / "precision.json")
    assert tried["precision"] == max(tried["tokens_per_s"], key=tried["tokens_per_s"].get)
    assert min(tried["tokens_per_s"].values()) > 0
    assert open_index(out).manifest["model"]["precision"] == tried["precision"]


def test_trying_changes_nothing_that_the_build_does_and_fits_the_context(
    settings: IndexSettings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "LENGTH", 1000)  # the model takes 64
    before = torch.get_float32_matmul_precision()
    seen = []
    monkeypatch.setattr(precision, "use_onednn", lambda: (seen.append(1), torch.set_float32_matmul_precision("medium")))
    assert precision.tokens_per_s(settings, "fp32", None) > 0  # type: ignore[arg-type]
    assert seen
    assert torch.get_float32_matmul_precision() == before


def test_a_mistake_leaves_nothing_behind(settings: IndexSettings):
    wrong = replace(settings, corpus=replace(settings.corpus, path=f"{settings.out}/nowhere.jsonl"))
    with pytest.raises(UserError, match="nowhere"):
        build_index(wrong)
    assert not Path(settings.out).exists()


def test_a_directory_of_somebody_else_is_left_alone(settings: IndexSettings):
    out = Path(settings.out)
    out.mkdir()
    (out / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="thesis"):
        build_index(settings)
    assert [each.name for each in out.iterdir()] == ["thesis.tex"]
