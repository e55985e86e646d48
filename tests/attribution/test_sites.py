"""What a site delivers: its true input, once per use, whoever shares it; and what is refused by its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headwater.attribution.models.base import Example, Site, TracedModel, freeze, fused_norm
from headwater.attribution.models.products import Product, Products
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.settings import ProjectionSettings
from headwater.configs.errors import UserError

WIDTH = 12


class FusedNormLinear(nn.Module):
    """As Transformer Engine's `LayerNormLinear`: is handed the state before the norm, which it makes itself."""

    def __init__(self, normalization: str, zero_centered: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, WIDTH) * 0.3)
        self.layer_norm_weight = nn.Parameter(torch.rand(WIDTH))
        self.layer_norm_bias = nn.Parameter(torch.randn(WIDTH)) if normalization == "LayerNorm" else None
        self.normalization, self.zero_centered_gamma, self.eps = normalization, zero_centered, 1e-5

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        scale = self.layer_norm_weight + 1 if self.zero_centered_gamma else self.layer_norm_weight
        if self.normalization == "RMSNorm":
            normed = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * scale
        else:
            normed = (x - x.mean(-1, keepdim=True)) * (x.var(-1, correction=0, keepdim=True) + self.eps).rsqrt()
            normed = normed * scale + self.layer_norm_bias
        return normed @ self.weight.t(), None


class Toy(TracedModel):
    """A model of tokens that do not see each other: `body` maps states [T, 12] to states, the loss is a fixed product.

    Sites are the parts of the body that have a weight; `group` says which of them may read one input.
    """

    def __init__(self, body: nn.Module, groups: Sequence[str] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.embedding = body, torch.randn(20, WIDTH)
        self.pull = torch.randn(20, 64)
        freeze(body)
        self.vocabulary = 20
        self._sites = [
            Site(name, part, tuple(part.weight.shape), shared=next((g for g in groups if name[0] in g), ""))  # type: ignore[arg-type]
            for name, part in body.named_modules()
            if isinstance(getattr(part, "weight", None), nn.Parameter)
        ]

    @property
    def sites(self) -> list[Site]:
        return self._sites

    @property
    def all_shapes(self) -> dict[str, tuple[int, int]]:
        return {site.name: site.shape for site in self._sites}

    def backward(self, examples: Sequence[Example], loss: str) -> None:
        self.bounds = [0, *np.cumsum([len(example.tokens) for example in examples]).tolist()]
        tokens = torch.from_numpy(np.concatenate([example.tokens for example in examples]))
        out = self.body(self.embedding[tokens])
        (out.tanh() * self.pull[tokens, : out.shape[-1]]).sum().backward()

    def second_moment(self, site: Site) -> Tensor:
        raise NotImplementedError


def rows_and_gradients(model: Toy) -> tuple[Tensor, list[Tensor]]:
    """Rows, projected with as many dimensions as there are, and the dense gradients by autograd."""
    asked = [Example(np.array([3, 1, 4, 1])), Example(np.array([5, 9, 2, 6, 5, 3]))]
    collector = GradientCollector(model, ProjectionSettings(dims=64), "none", "log_odds")
    rows = collector.rows(asked)
    expected = []
    for example in asked:
        model.body.requires_grad_(True).zero_grad()
        model.backward([example], "log_odds")
        parts = []
        for site in model.sites:
            left, right = (
                collector.watcher._sign(f"{key}", n, n, [(0, n)]).float()
                for key, n in ((f"{site.name}/out", site.shape[0]), (f"{site.shared}/in", site.shape[1]))
            )
            gradient = site.weight.grad if site.weight.grad is not None else torch.zeros(site.shape)
            parts.append((left.T @ gradient @ right).flatten())
        expected.append(torch.cat(parts))
        freeze(model.body)
    return rows, expected


def require_equal(model: Toy) -> None:
    rows, expected = rows_and_gradients(model)
    torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert bool((rows.norm(dim=1) > 1).all())


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("zero_centered", [False, True])
def test_a_fused_norm_is_part_of_the_input(
    normalization: str, zero_centered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = FusedNormLinear(normalization, zero_centered)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc1(x)[0]

    require_equal(Toy(Body()))
    # Handed on as it comes, the input is refused before any row is made.
    monkeypatch.setattr(Site, "true_input", lambda self, given: given)
    with pytest.raises(UserError, match="not its gradients in fc1"):
        rows_and_gradients(Toy(Body()))


def test_the_norm_keeps_the_type_of_what_it_is_handed() -> None:
    module = FusedNormLinear("RMSNorm", False)
    assert fused_norm(module, torch.randn(3, WIDTH, dtype=torch.bfloat16)).dtype == torch.bfloat16


class Twice(nn.Module):
    """One layer used twice, and a, b, c that may read one input; b is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(WIDTH, WIDTH)
        self.a, self.b, self.c = (nn.Linear(WIDTH, n, bias=False) for n in (7, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.again(x).tanh())
        return torch.cat([self.a(x), self.c(x), self.a(x * 2)], dim=-1)


def test_uses_add_up_and_nobody_waits_for_a_layer_that_is_not_called() -> None:
    model = Toy(Twice(), ["abc"])
    model._sites = [site for site in model.sites if site.name != "b"]
    require_equal(model)


def test_a_layer_that_delivers_nothing_is_named() -> None:
    model = Toy(Twice(), ["abc"])
    collector = GradientCollector(model, ProjectionSettings(dims=4), "none", "log_odds")
    with pytest.raises(UserError, match="1 layers delivered no gradient") as refused:
        collector.rows([Example(np.array([3, 1, 4]))])
    assert refused.value.got == "b"
    left = GradientCollector(model, ProjectionSettings(dims=4, modules={"b": 0}), "none", "log_odds")
    assert left.rows([Example(np.array([3, 1, 4]))]).shape == (1, left.layout.dims)


def test_a_layer_whose_gradient_never_comes_holds_nobody_up() -> None:
    class Unused(Twice):
        def forward(self, x: Tensor) -> Tensor:
            self.b(x)  # its output leads nowhere
            return torch.cat([self.a(x), self.c(x)], dim=-1) + self.again(x).sum(-1, keepdim=True)

    model = Toy(Unused(), ["abc"])
    model._sites = [site for site in model.sites if site.name != "b"] + [s for s in model.sites if s.name == "b"]
    collector = GradientCollector(model, ProjectionSettings(dims=64), "none", "log_odds")
    with pytest.raises(UserError, match="delivered no gradient"):
        collector.rows([Example(np.array([3, 1, 4]))])
    collector._always.discard("b")
    row = collector.rows([Example(np.array([3, 1, 4]))])[0]
    assert float(row[collector.spans["a"].slice].norm()) > 0
    assert float(row[collector.spans["b"].slice].norm()) == 0


def test_a_model_that_writes_into_an_input_is_refused() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            out = self.fc1(x)
            x.mul_(3)
            return out + x

    with pytest.raises(UserError, match="fc1 cannot be traced: the model writes into"):
        rows_and_gradients(Toy(Overwriting()))


def test_a_model_may_write_into_what_a_layer_returned() -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x).clamp_(-0.5, 0.5)).clamp_(-0.5, 0.5)

    require_equal(Toy(Clipped()))


def test_tokens_that_are_not_known_are_refused() -> None:
    collector = GradientCollector(
        Toy(nn.Sequential(nn.Linear(WIDTH, 5))), ProjectionSettings(dims=4), "none", "log_odds"
    )
    with pytest.raises(UserError, match="not in the model's vocabulary") as refused:
        collector.rows([Example(np.array([3, 20, 4]))])
    assert (refused.value.got, refused.value.expected) == ("token 20", "0 to 19")


def test_products_with_a_weight_are_seen_however_they_are_written() -> None:
    stack = nn.Parameter(torch.randn(3, 5, 7), requires_grad=False)  # three experts of [I, O] = [5, 7]
    other = nn.Parameter(torch.randn(5, 7), requires_grad=False)
    seen: list[Product] = []
    x, y = torch.randn(4, 5), torch.randn(4, 7)
    with Products([stack], seen.append):
        x @ stack[1]
        torch.nn.functional.linear(y, stack[2])
        torch.bmm(x.expand(3, 4, 5), stack)
        torch.addmm(torch.zeros(7), x, stack[0])
        y.matmul(stack[1].t())
        _ = x @ other, x @ stack[0, :, :3].repeat(1, 1), stack + 1
    got = [(p.first, list(p.pieces()), p.height, p.turned, p.batched) for p in seen]
    assert got == [
        (1, [1], 5, True, False),
        (2, [2], 5, False, False),
        (0, [0, 1, 2], 5, True, True),
        (0, [0], 5, True, False),
        (1, [1], 5, False, False),
    ]
    assert seen[0].given is x
