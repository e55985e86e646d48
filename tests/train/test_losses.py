"""The chunked head and loss against float64 autograd over whole logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwater.train import losses
from headwater.train.losses import LOSSES, head_loss, watched_head

from ..jobs import call
from .vocabulary_shards import compare_shards


def reference(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Loss of each token, float64, by the definitions."""
    logits = hidden @ weight.t()
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.masked_fill(torch.nn.functional.one_hot(labels, len(weight)).bool(), float("-inf"))
    if kind == "margin":
        return others.amax(1) - own
    log_odds = others.logsumexp(1) - own
    return log_odds if kind == "log_odds" else torch.nn.functional.softplus(log_odds)


def random_case(tokens: int, width: int, rows: int, scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, width, generator=generator) * scale
    weight = torch.randn(rows, width, generator=generator)
    labels = torch.randint(rows, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator) + 0.1
    return hidden, weight, labels, weights


def check(hidden, weight, labels, weights, kind: str, tolerance: float, z_loss: float = 0.0) -> None:
    hidden64, weight64 = hidden.double().requires_grad_(), weight.double().requires_grad_()
    expected_T = reference(hidden64, weight64, labels, kind)
    z_T = z_loss * (hidden64 @ weight64.t()).logsumexp(1).square()
    ((expected_T + z_T) * weights.double()).sum().backward()
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    total, loss_T, logprob_T, greedy_T = head_loss(hidden, weight, labels, weights, kind=kind, z_loss=z_loss)
    (3 * total).backward()
    logits = hidden64 @ weight64.t()

    def close(got: torch.Tensor, want: torch.Tensor) -> None:
        assert torch.linalg.vector_norm(got.double() - want) <= tolerance * torch.linalg.vector_norm(want)

    close(loss_T, expected_T.detach())
    close(total.detach(), (expected_T * weights.double()).sum().detach())
    close(logprob_T, logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1).detach())
    assert torch.equal(greedy_T, logits.argmax(1) == labels)
    close(hidden.grad, 3 * hidden64.grad)
    close(weight.grad, 3 * weight64.grad)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("tokens", "width", "rows"), [(1, 1, 2), (7, 5, 3), (63, 17, 101), (130, 8, 33)])
def test_equals_float64_autograd(kind, tokens, width, rows):
    check(*random_case(tokens, width, rows), kind=kind, tolerance=2e-6)


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_the_z_loss_is_in_the_gradient_alone(scale):
    hidden, weight, labels, weights = random_case(41, 7, 23, scale)
    labels[:20] = (hidden @ weight.t()).argmax(1)[:20]  # learnt tokens have little of any other gradient
    check(hidden, weight, labels, weights, "cross_entropy", 2e-5, z_loss=0.05)
    plain, with_it = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    head_loss(plain, weight, labels, weights)[0].backward()
    head_loss(with_it, weight, labels, weights, z_loss=0.05)[0].backward()
    assert torch.linalg.vector_norm(with_it.grad - plain.grad) > 0.1 * torch.linalg.vector_norm(plain.grad)
    with pytest.raises(ValueError, match="has no z-loss"):
        head_loss(hidden, weight, labels, weights, kind="margin", z_loss=0.05)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("tokens", [15, 16, 17, 32, 33])
def test_edges_of_a_chunk_change_nothing(kind, tokens, monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK", 16)
    check(*random_case(tokens, 6, 19), kind=kind, tolerance=2e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_extreme_logits_stay_finite_and_right(kind):
    """Logits of several hundred: exp of them overflows float32."""
    hidden, weight, labels, weights = random_case(41, 7, 23, scale=200.0)
    labels[:20] = (hidden @ weight.t()).argmax(1)[:20]  # learnt tokens: 1 - p is 0 in float32
    check(hidden, weight, labels, weights, kind=kind, tolerance=2e-5)


def test_a_learnt_token_keeps_its_gradient_under_log_odds_alone():
    hidden = torch.tensor([[40.0, 0.0]], requires_grad=True)
    weight = torch.eye(2)
    gradients = {}
    for kind in LOSSES:
        total, *_ = head_loss(hidden, weight, torch.tensor([0]), torch.ones(1), kind=kind)
        (gradients[kind],) = torch.autograd.grad(total, hidden)
    assert gradients["cross_entropy"].abs().max() < 1e-15
    assert gradients["log_odds"].tolist() == [[-1.0, 1.0]]
    assert gradients["margin"].tolist() == [[-1.0, 1.0]]


def test_tied_rivals_share_the_margins_gradient():
    hidden = torch.ones(1, 1, requires_grad=True)
    weight = torch.tensor([[0.0], [2.0], [2.0]], requires_grad=True)
    total, *_ = head_loss(hidden, weight, torch.tensor([0]), torch.ones(1), kind="margin")
    total.backward()
    assert weight.grad.squeeze(1).tolist() == [-1.0, 0.5, 0.5]


def test_no_places_with_loss():
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    total, *_ = head_loss(hidden, weight, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    total.backward()
    assert total == 0
    assert weight.grad.abs().max() == 0


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="expected one of cross_entropy, log_odds, margin"):
        head_loss(*random_case(3, 2, 4)[:4], kind="entropy")


@pytest.mark.slow
def test_sharded_vocabulary_equals_the_whole(tmp_path: Path):
    log = tmp_path / "log"
    assert call(compare_shards, ranks=2, log=log) == 0, log.read_text()


def test_without_gradients_nothing_is_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluating makes no gradient, which nobody would use, and a watch sees none."""
    hidden, weight, labels, weights = random_case(30, 6, 11)
    weight.requires_grad_()
    pulls: list[bool] = []
    chunk = losses._chunk
    monkeypatch.setattr(losses, "_chunk", lambda *given: pulls.append(given[6]) or chunk(*given))
    seen: list[slice] = []
    with watched_head(lambda part, hidden_Cd, pull_CV: seen.append(part)):
        expected = head_loss(hidden, weight, labels, weights)
        with torch.no_grad():
            got = head_loss(hidden, weight, labels, weights)
    assert (pulls, len(seen)) == ([True, False], 1)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
