"""Rows of the output head: autograd's gradient of the head's weight alone, whatever else it is tied to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headwater.attribution.index.budget import bytes_per_passage, fit_budget
from headwater.attribution.models.base import Example, TracedModel
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.attribution.models.huggingface import HEAD_NAME, HuggingFaceModel
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector, module_dims
from headwater.attribution.rows.hooks import sign_parts
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.settings import IndexSettings, ProjectionSettings, TracedModelSettings
from headwater.configs import load_config
from headwater.configs.errors import ConfigError, UserError
from headwater.train import parallel

from .families import make_family
from .test_gradients import examples, make_hf_model, token_losses

LOSSES = ("log_odds", "cross_entropy", "margin")
HEAD = 7


@pytest.fixture(scope="module")
def world() -> Iterator[parallel.World]:
    yield parallel.start(threads=1)
    parallel.stop()


@pytest.fixture(scope="module")
def ours(tiny_run: Path, world: parallel.World) -> HeadwaterModel:
    model = open_model(TracedModelSettings(run=str(tiny_run)), world)
    assert isinstance(model, HeadwaterModel)
    return model


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceModel:
    """A Llama whose head is its own, and a GPT-2 whose head is the embedding."""
    return HuggingFaceModel(str(make_hf_model(request.param, tmp_path_factory.mktemp(request.param))))


def states_of(model: TracedModel, tokens: Tensor) -> Tensor:
    """Last hidden states [T, d] of one text."""
    with torch.no_grad():
        if isinstance(model, HuggingFaceModel):
            return model.model.base_model(input_ids=tokens[None]).last_hidden_state[0]
        assert isinstance(model, HeadwaterModel)
        kept: list[Tensor] = []
        hook = model.gpt.decoder.register_forward_hook(lambda module, inputs, output: kept.append(output))
        model.gpt.logits(tokens)
        hook.remove()
        return kept[0].squeeze(1)


def gradient_of_head(model: TracedModel, example: Example, kind: str) -> Tensor:
    """G [V, d] of the head alone, float64, by autograd with a copy of its weight."""
    assert model.head is not None
    weight = model.head.weight.detach().double().requires_grad_(True)
    tokens = torch.from_numpy(example.tokens)
    logits = states_of(model, tokens)[:-1].double() @ weight.t()
    losses = token_losses(logits, tokens[1:], kind) * torch.from_numpy(example.loss_weights)
    losses.sum().backward()
    assert weight.grad is not None
    return weight.grad


def projected(model: TracedModel, gradient_Vd: Tensor, head: int = HEAD) -> Tensor:
    assert model.head_shape is not None
    name, (outputs, inputs) = model.head_shape
    left = sign_parts(0, f"{name}/out", outputs, min(head, outputs), [(0, outputs)]).double()
    right = sign_parts(0, f"{name}/in", inputs, min(head, inputs), [(0, inputs)]).double()
    return (left.T @ gradient_Vd @ right).flatten()


def check(model: TracedModel, kind: str) -> None:
    asked = examples(model.vocabulary or 2)
    collector = GradientCollector(model, ProjectionSettings(dims=3, head=HEAD), "none", kind)
    name, _ = model.head_shape or ("", None)
    assert collector.layout.names[-1] == name, "after the layers of the blocks"
    rows = collector.rows(asked)[:, collector.spans[name].slice].double()
    expected = torch.stack([projected(model, gradient_of_head(model, each, kind)) for each in asked])
    for row, reference in zip(rows, expected, strict=True):
        assert float((row - reference).norm() / reference.norm()) < 1e-4
    assert float((rows[0] - expected[1]).norm() / expected[1].norm()) > 0.1
    # A row of the blocks is what it is without the head.
    plain = GradientCollector(model, ProjectionSettings(dims=3), "none", kind).rows(asked)
    torch.testing.assert_close(collector.rows(asked)[:, : plain.shape[1]], plain)


@pytest.mark.parametrize("kind", LOSSES)
def test_of_a_run_they_are_autograds(ours: HeadwaterModel, kind: str):
    assert ours.gpt.tied
    check(ours, kind)


@pytest.mark.parametrize("kind", LOSSES)
def test_of_a_hugging_face_model_they_are_autograds(theirs: HuggingFaceModel, kind: str):
    check(theirs, kind)


def test_the_head_alone_takes_no_backward_pass(ours: HeadwaterModel, theirs: HuggingFaceModel):
    for model in (ours, theirs):
        asked = examples(model.vocabulary or 2)
        alone = ProjectionSettings(modules={"*": 0}, head=HEAD)
        collector = GradientCollector(model, alone, "none", "log_odds")
        assert len(collector.layout.names) == 1
        expected = torch.stack([projected(model, gradient_of_head(model, each, "log_odds")) for each in asked])
        got = collector.rows(asked).double()
        assert float((got - expected).norm() / expected.norm()) < 1e-4
        by_token = collector.token_rows(asked[0])
        torch.testing.assert_close(by_token.sum(dim=0).double(), expected[0], rtol=1e-3, atol=1e-3)
        assert int((by_token.norm(dim=1) > 0).sum()) == len(asked[0].tokens) - 1, "the last place predicts nothing"


def test_corrections_divide_them_by_the_heads_own_moment(ours: HeadwaterModel):
    asked = examples(ours.vocabulary or 2)[:2]
    assert ours.head is not None
    moment = ours.second_moment(ours.head).double()
    assert tuple(moment.shape) == ours.head.shape
    for kind in ("adam", "adafactor"):
        collector = GradientCollector(ours, ProjectionSettings(modules={"*": 0}, head=HEAD), kind, "log_odds")
        factor = 1 / (moment.sqrt() + ours.eps)
        if kind == "adafactor":
            rows, columns = moment.mean(dim=1), moment.mean(dim=0)
            factor = 1 / ((rows / rows.mean()).sqrt() + ours.eps)[:, None] / (columns.sqrt() + ours.eps)[None, :]
        for got, each in zip(collector.rows(asked), asked, strict=True):
            expected = projected(ours, gradient_of_head(ours, each, "log_odds") * factor)
            assert float((got.double() - expected).norm() / expected.norm()) < 1e-4, kind


def test_a_head_that_does_more_than_multiply_has_none(tmp_path: Path):
    model = HuggingFaceModel(str(make_family("gemma2, caps", tmp_path / "model")))
    assert model.head is None
    with_head, without = (
        GradientCollector(model, ProjectionSettings(dims=3, head=head), "none", "log_odds").layout for head in (HEAD, 0)
    )
    assert with_head == without
    with pytest.raises(UserError, match="leaves no module"):
        GradientCollector(model, ProjectionSettings(modules={"*": 0}, head=HEAD), "none", "log_odds")


def test_a_budget_gives_the_head_half_of_the_bytes():
    shapes, head = {"a": (40, 30), "b": (20, 50)}, ("head", (900, 60))

    def bytes_of(projection: ProjectionSettings, **changes: Any) -> int:
        widths = module_dims(shapes, replace(projection, **changes), head)
        return bytes_per_passage(RowLayout((name, *each) for name, each in widths.items()), "sign")

    got = fit_budget(ProjectionSettings(head=256), shapes, "sign", 400, head)
    assert bytes_of(got) <= 400 < bytes_of(got, dims=got.dims + 1)
    assert bytes_of(got, modules={"*": 0}) <= 200 < bytes_of(got, modules={"*": 0}, head=got.head + 1)
    alone = fit_budget(ProjectionSettings(modules={"*": 0}, head=256), shapes, "sign", 400, head)
    assert bytes_of(alone) <= 400 < bytes_of(alone, head=alone.head + 1)
    assert fit_budget(ProjectionSettings(head=9), shapes, "sign", 10_000, head).head == 9, "no more than is asked for"
    assert fit_budget(ProjectionSettings(), shapes, "sign", 400, head).head == 0
    with pytest.raises(UserError, match="too small"):
        fit_budget(ProjectionSettings(head=256), shapes, "sign", 10, head)


def test_a_head_is_named_alike_in_all_families(theirs: HuggingFaceModel):
    assert theirs.head_shape == (HEAD_NAME, (131, 24))


def test_a_whole_curvature_of_a_wide_head_is_refused():
    """`index/run` has 180 dimensions of the head, whose whole curvature would be a matrix of 8 GiB."""
    load_config(IndexSettings, "index/run", ["curvature.kind=full", "projection.head=128"])
    with pytest.raises(ConfigError, match=r"projection\.head=0"):
        load_config(IndexSettings, "index/run", ["curvature.kind=full"])
