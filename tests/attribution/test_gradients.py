"""Gradient rows against autograd's own per-example gradients, projected in float64."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from headwater.attribution.models.base import Example, TracedModel
from headwater.attribution.models.headwater import HeadwaterModel, pack
from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.models.moments import read_eps, read_moments
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector, batched, collect, module_dims
from headwater.attribution.rows.correction import correction_for, whole_correction
from headwater.attribution.rows.hooks import sign_parts
from headwater.attribution.settings import ProjectionSettings, TracedModelSettings
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.kernels import Factored, Full
from headwater.train import parallel
from headwater.train.compat import declare_torchvision_operators

from ..jobs import call
from .rows_in_layout import rows_in_layout

FAMILIES = ("llama", "gpt_neox", "gpt2")
LENGTHS = (5, 17, 2, 33, 9)


@pytest.fixture(scope="module")
def world() -> Iterator[parallel.World]:
    yield parallel.start(threads=1)
    parallel.stop()


@pytest.fixture(scope="module")
def headwater_model(tiny_run: Path, world: parallel.World) -> HeadwaterModel:
    model = open_model(TracedModelSettings(run=str(tiny_run)), world)
    assert isinstance(model, HeadwaterModel)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def hf_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceModel:
    return HuggingFaceModel(str(make_hf_model(request.param, tmp_path_factory.mktemp(request.param))))


def make_hf_model(family: str, path: Path) -> Path:
    """A random two-layer model of odd sizes, saved as Hugging Face does."""
    declare_torchvision_operators()
    import transformers

    torch.manual_seed(7)
    common = {"vocab_size": 131, "max_position_embeddings": 64}
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family == "llama":
        config = transformers.LlamaConfig(**common, **sizes, num_key_value_heads=2)
    elif family == "gpt_neox":
        config = transformers.GPTNeoXConfig(**common, **sizes)
    else:
        config = transformers.GPT2Config(vocab_size=131, n_positions=64, n_embd=24, n_layer=2, n_head=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def examples(vocabulary: int, lengths: tuple[int, ...] = LENGTHS) -> list[Example]:
    generator = np.random.default_rng(3)
    made = [Example(generator.integers(1, vocabulary, size=length)) for length in lengths]
    # One is a query: its loss is on its last tokens alone; of another the tokens count unequally, some not at all.
    weights = np.where(np.arange(17) % 3 == 1, 0, np.arange(17) / 4).astype(np.float32)
    made[1] = Example(made[1].tokens, weights=weights) if len(made[1].tokens) == 17 else made[1]
    return [*made[:-1], Example(made[-1].tokens, target_start=6)]


def token_losses(logits_TV: Tensor, labels_T: Tensor, kind: str) -> Tensor:
    """The definition, in float64."""
    logits_TV = logits_TV.double()
    own_T = logits_TV.gather(1, labels_T[:, None]).squeeze(1)
    others_TV = logits_TV.scatter(1, labels_T[:, None], float("-inf"))
    if kind == "cross_entropy":
        return torch.logsumexp(logits_TV, 1) - own_T
    if kind == "margin":
        return others_TV.amax(1) - own_T
    return torch.logsumexp(others_TV, 1) - own_T


def gradients_by_autograd(model: TracedModel, example: Example, kind: str) -> dict[str, Tensor]:
    """G of each site, float64 [O, I], from autograd over the weights themselves."""
    module = model.gpt if isinstance(model, HeadwaterModel) else model.model  # type: ignore[attr-defined]
    module.requires_grad_(True)
    module.zero_grad()
    tokens = torch.from_numpy(example.tokens)
    if isinstance(model, HeadwaterModel):
        batch, _ = pack([example])
        hidden = model.gpt.decoder(
            hidden_states=model.gpt.embedding(input_ids=batch.tokens_T[None], position_ids=None),
            attention_mask=None,
            rotary_pos_emb=rotary(model, batch.segments.positions_T),
            packed_seq_params=batch.segments,
        )
        logits = hidden.squeeze(1)[: len(tokens)] @ model.gpt.embedding.word_embeddings.weight.t()
    else:
        logits = module(input_ids=tokens[None], use_cache=False).logits[0]
    losses = token_losses(logits[:-1], tokens[1:], kind)
    if example.weights is not None:
        losses = losses * torch.from_numpy(example.weights[1:])
    losses[example.target_start - 1 :].sum().backward()
    found = {}
    for site in model.sites:
        gradient = site.module.weight.grad
        stored_as_IO = type(site.module).__name__ == "Conv1D"
        found[site.name] = (gradient.t() if stored_as_IO else gradient).double().clone()
    module.requires_grad_(False)
    return found


def rotary(model: HeadwaterModel, positions_T: Tensor | None) -> Tensor:
    model.gpt.rotary_pos_emb.positions_T = positions_T
    return model.gpt.rotary_pos_emb()


def reference_rows(
    model: TracedModel, collector: GradientCollector, asked: list[Example], seed: int, correction: str, kind: str
) -> Tensor:
    rows = []
    sites = {site.name: site for site in model.sites}
    for example in asked:
        gradients = gradients_by_autograd(model, example, kind)
        parts = []
        for site in (sites[name] for name in collector.layout.names):
            span = collector.spans[site.name]
            gradient = gradients[site.name]
            if correction != "none":
                made = correction_for(correction, model.second_moment(site), site)
                factor = made.w_OI if isinstance(made, Full) else torch.outer(made.r_O, made.c_I)  # type: ignore[union-attr]
                gradient = gradient * factor.double()
            left = sign_parts(seed, f"{site.name}/out", site.shape[0], span.k_out, site.out_parts).double()
            right = sign_parts(seed, f"{site.shared}/in", site.shape[1], span.k_in, site.in_parts).double()
            parts.append((left.T @ gradient @ right).flatten())
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ["log_odds", "cross_entropy", "margin"])
@pytest.mark.parametrize("correction", ["none", "adam", "adafactor"])
def test_headwater_rows_equal_autograd(headwater_model: HeadwaterModel, kind: str, correction: str) -> None:
    projection = ProjectionSettings(dims=7, seed=5)
    collector = GradientCollector(headwater_model, projection, correction, kind)
    asked = examples(2048)
    expected = reference_rows(headwater_model, collector, asked, 5, correction, kind)
    assert relative(collector.rows(asked), expected) < 1e-4
    # The same test must fail for another seed: the sign matrices matter.
    other = GradientCollector(headwater_model, ProjectionSettings(dims=7, seed=6), correction, kind)
    assert relative(other.rows(asked), expected) > 0.5


@pytest.mark.parametrize("kind", ["log_odds", "cross_entropy"])
def test_hugging_face_rows_equal_autograd(hf_model: HuggingFaceModel, kind: str) -> None:
    collector = GradientCollector(hf_model, ProjectionSettings(dims=6), "none", kind)
    asked = examples(131)
    expected = reference_rows(hf_model, collector, asked, 0, "none", kind)
    assert relative(collector.rows(asked), expected) < 1e-4
    assert len(collector.layout) == len(hf_model.sites) >= 8


def test_alone_equals_packed(headwater_model: HeadwaterModel) -> None:
    collector = GradientCollector(headwater_model, ProjectionSettings(dims=8), "adafactor", "log_odds")
    asked = examples(2048)
    together = collector.rows(asked)
    alone = torch.cat([collector.rows([example]) for example in asked])
    backwards = collector.rows(asked[::-1]).flip(0)
    assert relative(alone, together.double()) < 1e-5
    assert relative(backwards, together.double()) < 1e-5
    one = collect(collector, asked, batch_tokens=1)
    many = collect(collector, asked, batch_tokens=10_000)
    assert relative(one, many.double()) < 1e-5


def test_hugging_face_alone_equals_padded(hf_model: HuggingFaceModel) -> None:
    collector = GradientCollector(hf_model, ProjectionSettings(dims=6), "none", "cross_entropy")
    asked = examples(131)
    alone = torch.cat([collector.rows([example]) for example in asked])
    assert relative(collector.rows(asked), alone.double()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tensor", "pipeline"])
def test_rows_do_not_depend_on_the_layout(
    tiny_run: Path, headwater_model: HeadwaterModel, tmp_path: Path, layout: str
) -> None:
    projection = ProjectionSettings(dims=8, head=11)
    expected = GradientCollector(headwater_model, projection, "adam", "log_odds").rows(examples(2048))
    out, log = tmp_path / "rows.pt", tmp_path / "log"
    arguments = str(tiny_run), layout, examples(2048), str(out)
    assert call(rows_in_layout, *arguments, ranks=2, log=log) == 0, log.read_text()
    assert relative(torch.load(out, weights_only=True), expected.double()) < 1e-5


def test_modules_by_pattern() -> None:
    shapes = {"a.linear_qkv": (12, 8), "a.linear_fc1": (16, 8)}
    assert module_dims(shapes, ProjectionSettings(dims=10)) == {"a.linear_qkv": (10, 8), "a.linear_fc1": (10, 8)}
    assert module_dims(shapes, ProjectionSettings(dims=4, modules={"*qkv": 0})) == {"a.linear_fc1": (4, 4)}
    with pytest.raises(UserError, match="no module matches"):
        module_dims(shapes, ProjectionSettings(modules={"*typo*": 3}))
    with pytest.raises(UserError, match="leaves no module"):
        module_dims(shapes, ProjectionSettings(modules={"*": 0}))


def test_batches_hold_each_example_once() -> None:
    lengths = [9, 3, 40, 3, 8]
    made = list(batched(lengths, 12))
    assert sorted(i for batch in made for i in batch) == [0, 1, 2, 3, 4]
    assert all(sum(lengths[i] for i in batch) <= 12 or len(batch) == 1 for batch in made)


def test_moments_that_do_not_fit_are_refused(headwater_model: HeadwaterModel) -> None:
    site = next(site for site in headwater_model.sites if site.shape[0] != site.shape[1])
    moment = headwater_model.second_moment(site)
    assert isinstance(correction_for("adafactor", moment, site), Factored)
    with pytest.raises(MismatchError, match="transposed"):
        correction_for("adam", moment.t(), site)
    with pytest.raises(MismatchError, match="another shape"):
        correction_for("adam", moment[:1], site)
    with pytest.raises(MismatchError, match="not one"):
        correction_for("adam", moment * float("nan"), site)


def test_optimizer_states_of_others_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.5), eps=1e-5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "own.pt")
    assert read_eps(str(tmp_path / "own.pt")) == 1e-5
    mixed = optimizer.state_dict()
    mixed["param_groups"] = [{**mixed["param_groups"][0], "eps": eps} for eps in (1e-5, 1e-8)]
    torch.save(mixed, tmp_path / "mixed.pt")
    with pytest.raises(MismatchError, match="different eps"):
        read_eps(str(tmp_path / "mixed.pt"))
    moments = read_moments(str(tmp_path / "own.pt"), model)
    gradient = model[0].weight.grad
    # One step from zero: v = (1 - beta2) g^2, and without its bias g^2.
    torch.testing.assert_close(moments["0.weight"], gradient.square(), atol=1e-6, rtol=1e-5)
    with pytest.raises(MismatchError, match="another model"):
        read_moments(str(tmp_path / "own.pt"), torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)))
    with pytest.raises(MissingError):
        read_moments(str(tmp_path / "none.pt"), model)
    torch.save(model, tmp_path / "pickled.pt")
    with pytest.raises(CorruptError, match="not a torch optimizer state"):
        read_moments(str(tmp_path / "pickled.pt"), model)


def test_the_trainers_two_groups_are_known_by_its_order(tmp_path: Path) -> None:
    path = make_hf_model("gpt2", tmp_path / "model")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    named = dict(model.named_parameters())
    decayed = [name for name in named if not re.search(r"\.bias$|\.ln_", name)]
    rest = [name for name in named if name not in decayed]
    groups = [{"params": [named[name] for name in part]} for part in (decayed, rest)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.5))
    tokens = torch.arange(9)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    moments = read_moments(str(tmp_path / "optimizer.pt"), model)
    for name, parameter in named.items():
        assert parameter.grad is not None
        torch.testing.assert_close(moments[name], parameter.grad.square(), atol=1e-6, rtol=1e-5)
    # Groups that nobody knows are refused, unless they say what is in them.
    third = torch.optim.AdamW([{"params": [named[n]]} for n in named], betas=(0.9, 0.5))
    third.step()
    torch.save(third.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(MismatchError, match="groups are not known"):
        read_moments(str(tmp_path / "optimizer.pt"), model)
    state = third.state_dict()
    for group, name in zip(state["param_groups"], named, strict=True):
        group["param_names"] = [name]
    torch.save(state, tmp_path / "optimizer.pt")
    assert read_moments(str(tmp_path / "optimizer.pt"), model).keys() == named.keys()


def test_examples_without_a_target_are_refused(headwater_model: HeadwaterModel) -> None:
    collector = GradientCollector(headwater_model, ProjectionSettings(dims=4), "none", "log_odds")
    with pytest.raises(UserError, match="no token to take a loss on"):
        collector.rows([Example(np.array([1]))])
    with pytest.raises(UserError, match="no token to take a loss on"):
        collector.rows([Example(np.array([1, 2]), target_start=2)])
    for weights in ([1.0, 1.0], [1.0, 0.0, 0.0], [1.0, np.nan, 1.0], [[1.0, 1.0, 1.0]]):
        with pytest.raises(UserError, match="weights that cannot be taken"):
            collector.rows([Example(np.array([1, 2, 3]), weights=np.array(weights, dtype=np.float32))])


def test_a_correction_takes_the_epsilon_of_the_run():
    """Where moments are small beside it, a larger epsilon is what divides; one of 0 divides nothing by 0."""
    moment = torch.tensor([[1e-12, 0.0], [4.0, 1e-6]], dtype=torch.float64)
    for eps in (1e-3, 1e-8):
        made = whole_correction("adam", moment, "layer", (2, 2), eps)
        assert isinstance(made, Full)
        torch.testing.assert_close(made.w_OI.double(), 1 / (moment.sqrt() + eps), rtol=1e-5, atol=0)
    none = whole_correction("adam", moment, "layer", (2, 2), 0.0)
    assert isinstance(none, Full)
    assert bool(torch.isfinite(none.w_OI).all())
