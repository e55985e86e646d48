"""Second moments fitted on passages: autograd's squares, a correction made of them, and an index that keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.attribution.index.build import build_index
from headwater.attribution.index.reader import open_index
from headwater.attribution.models.base import Example
from headwater.attribution.models.fitted_moments import FILE, FittedMoments, fit_moments, read_fitted
from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.settings import IndexSettings
from headwater.attribution.tracing.attributor import Attributor
from headwater.configs import ConfigError, load_config
from headwater.configs.errors import MismatchError, UserError

from .families import make_family

LENGTHS = (7, 3, 12)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> HuggingFaceModel:
    return HuggingFaceModel(str(tiny_llama))


def examples(model: HuggingFaceModel) -> list[Example]:
    draw = np.random.default_rng(4)
    return [Example(draw.integers(0, model.vocabulary or 2, size=length)) for length in LENGTHS]


def squares(model: HuggingFaceModel) -> dict[str, torch.Tensor]:
    """Means of squared gradients of the cross entropy, float64, by transformers' own loss."""
    reference = model.model.double()
    try:
        found: dict[str, torch.Tensor] = {}
        for parameter in reference.parameters():
            parameter.requires_grad_(True)
        for example in examples(model):
            reference.zero_grad()
            ids = torch.from_numpy(example.tokens)[None]
            (reference(input_ids=ids, labels=ids).loss * (len(example.tokens) - 1)).backward()
            for site in model.sites:
                assert site.weight.grad is not None
                found[site.name] = found.get(site.name, 0) + site.weight.grad.square() / len(LENGTHS)
        return found
    finally:
        model.model.float().requires_grad_(False)
        reference.zero_grad(set_to_none=True)


def test_they_are_means_of_squared_gradients(model: HuggingFaceModel) -> None:
    expected = squares(model)
    for kind in ("adam", "adafactor"):
        moments = FittedMoments(model, kind, "cross_entropy")
        moments.add(examples(model))
        found = moments.tensors()
        for name, square_OI in expected.items():
            parts = {"moment": square_OI, "rows": square_OI.mean(dim=1), "columns": square_OI.mean(dim=0)}
            for what in ["moment"] if kind == "adam" else ["rows", "columns"]:
                got = found.pop(f"{what}.{name}").double()
                assert float((got - parts[what]).norm() / parts[what].norm()) < 1e-4, (what, name)
        assert not found, "nothing but the layers' moments"
    assert not any(site.weight.requires_grad or site.weight.grad is not None for site in model.sites)


def test_what_is_kept_as_means_is_their_estimate(model: HuggingFaceModel, tmp_path: Path) -> None:
    path, site = tmp_path / FILE, model.sites[-1]
    fit_moments(path, model, examples(model), "adafactor", "cross_entropy", {"corpus": "a"})
    square_OI = squares(model)[site.name]
    rows_O, columns_I = square_OI.mean(dim=1), square_OI.mean(dim=0)
    expected = rows_O[:, None] * columns_I / rows_O.mean()
    got = read_fitted(path, site.name, site.shape).double()
    assert float((got - expected).norm() / expected.norm()) < 1e-4
    with pytest.raises(MismatchError, match="no second moment of other"):
        read_fitted(path, "other", site.shape)


def test_they_are_made_once_and_again_of_something_else(model: HuggingFaceModel, tmp_path: Path) -> None:
    path = tmp_path / FILE
    fit_moments(path, model, examples(model), "adam", "log_odds", {"corpus": "a"})
    first = path.read_bytes()
    fit_moments(path, model, [], "adam", "log_odds", {"corpus": "a"})
    assert path.read_bytes() == first, "nothing was asked of the examples"
    fit_moments(path, model, examples(model)[:1], "adam", "log_odds", {"corpus": "b"})
    assert path.read_bytes() != first
    with pytest.raises(UserError, match="without a passage"):
        fit_moments(path, model, [], "adam", "log_odds", {"corpus": "c"})


def test_an_index_is_corrected_by_them_and_asked_with_them(tiny_llama: Path, tmp_path: Path) -> None:
    words = "the river runs to a harbor of stone and copper past every garden"
    lines = [json.dumps({"id": f"d{n}", "text": f"{words} {n} {words[:n]}"}) for n in range(9)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    given = [f"model.path={tiny_llama}", f"corpus.path={tmp_path / 'docs.jsonl'}", "corpus.max_tokens=64"]
    given += ["projection.dims=4", "codecs=[fp32]", "model.moments_sample=5"]
    norms = {}
    for correction in ("adam", "adafactor", "none"):
        fit = [] if correction == "none" else ["model.moments=fit"]
        made = tmp_path / "made" / correction
        build_index(load_config(IndexSettings, None, [*given, f"out={made}", f"correction={correction}", *fit]))
        assert (made / FILE).exists() is bool(fit)
        out = made.rename(tmp_path / correction)  # the moments go along
        with Attributor.open(out) as attributor:
            opened = attributor.opened[0]
            raw_ND = opened.passage_rows(np.arange(9))
        index = open_index(out)
        rows_ND = index.whitening.apply(raw_ND / raw_ND.norm(dim=1, keepdim=True))
        unit_ND = rows_ND / rows_ND.norm(dim=1, keepdim=True)
        stored_ND = index.rows(0, 9)
        assert float((unit_ND - stored_ND / stored_ND.norm(dim=1, keepdim=True)).norm()) < 1e-3, correction
        norms[correction] = raw_ND.norm(dim=1)
    assert not torch.allclose(norms["adam"], norms["none"], rtol=0.1)
    assert not torch.allclose(norms["adam"], norms["adafactor"], rtol=1e-3)


def test_an_expert_that_no_token_reaches_has_none(tmp_path: Path) -> None:
    model = HuggingFaceModel(str(make_family("mixtral", tmp_path / "model")))
    moments = FittedMoments(model, "adam", "cross_entropy")
    moments.add([Example(np.array([5, 9]))])  # two tokens, two of four experts each
    found = moments.tensors()
    assert {name.removeprefix("moment.") for name in found} == set(model.all_shapes)
    assert all(tuple(found[f"moment.{name}"].shape) == shape for name, shape in model.all_shapes.items())


def test_settings_that_do_not_go_together_are_refused() -> None:
    for wrong in (
        ["model.path=x", "correction=none", "model.moments=fit"],
        ["model.run=x", "correction=adam", "model.moments=fit"],
        ["model.path=x", "correction=adam", "model.moments=fit", "model.optimizer_state=y"],
        ["model.path=x", "correction=adam", "model.moments=fit", "projection.head=8"],
    ):
        with pytest.raises(ConfigError, match="moments"):
            load_config(IndexSettings, None, [*wrong, "corpus.path=d", "out=o"])
