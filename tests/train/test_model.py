"""A passage's loss and gradient do not depend on what it is packed with; the model's shapes and first weights."""

from __future__ import annotations

import math

import pytest
import torch

from headwater.train.losses import LOSSES
from headwater.train.micro_batch import pack_sequences
from headwater.train.model import Batch, build_model, parameter_parts
from headwater.train.settings import ModelSettings, TrainSettings
from headwater.train.stream.stream import TrainingSequence

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def settings(**changes) -> ModelSettings:
    base = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn_hidden": 44, "vocab_size": 61}
    return ModelSettings(**{**base, "init_std": 0.2, **changes})


def passage(length: int, seed: int) -> torch.Tensor:
    return torch.randint(1, 61, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["tied", "untied"])
def model(request, world):
    return build_model(settings(tie_embeddings=request.param == "tied"), TrainSettings(), world, seed=4)


def loss_and_gradients(model, passages, counted):
    """Loss of each token of the counted passages, and the gradient of their sum for every parameter."""
    lengths = torch.tensor([len(p) for p in passages])
    batch = Batch.from_lengths(torch.cat(passages), lengths, torch.tensor(counted))
    model.zero_grad()
    total, loss_K, *_ = model.run(batch)
    total.backward()
    return loss_K, {part.name: part.parameter.grad.clone() for part in parameter_parts(model)}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("length", [2, 17, 40])
def test_alone_is_packed(model, kind, length):
    model.loss_kind = kind
    one = passage(length, 1)
    neighbours = [passage(n, n) for n in (5, 33, 1, 16)]
    alone_loss, alone = loss_and_gradients(model, [one], [True])
    assert len(alone_loss) == length - 1
    for place in (0, 2, 4):
        packed = [*neighbours[:place], one, *neighbours[place:]]
        counted = [each is one for each in packed]
        loss, gradients = loss_and_gradients(model, packed, counted)
        torch.testing.assert_close(loss, alone_loss, **TOLERANCE)
        for name, gradient in alone.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_a_packed_batch_is_the_sum_of_its_passages(model):
    model.loss_kind = "cross_entropy"
    passages = [passage(n, n + 7) for n in (11, 2, 30)]
    loss, gradients = loss_and_gradients(model, passages, [True] * 3)
    each = [loss_and_gradients(model, [p], [True]) for p in passages]
    torch.testing.assert_close(loss, torch.cat([one for one, _ in each]), **TOLERANCE)
    for name, gradient in gradients.items():
        total = sum(g[name] for _, g in each)
        torch.testing.assert_close(gradient, total, rtol=1e-5, atol=1e-5 * float(total.abs().max()), msg=name)


def test_an_unrestarted_position_would_be_noticed(model):
    """The negative control of the invariance tests: a passage without its boundary has another loss."""
    one, before = passage(20, 1), passage(13, 2)
    alone, _ = loss_and_gradients(model, [one], [True])
    run_on = Batch.from_lengths(torch.cat([before, one]), torch.tensor([33]))
    loss = model.run(run_on)[1][13:]
    assert not torch.allclose(loss, alone, rtol=1e-2)


def test_a_neighbours_nan_stays_with_it(model):
    """The neighbour's embedding is NaN: the counted passage's losses are not touched."""
    one, neighbour = passage(12, 3), passage(9, 4)
    clean, _ = loss_and_gradients(model, [one], [True])
    is_neighbour = (torch.arange(21) < 9)[:, None, None]
    hook = model.embedding.register_forward_hook(
        lambda module, inputs, output: output.masked_fill(is_neighbour, float("nan"))
    )
    try:
        loss, gradients = loss_and_gradients(model, [neighbour, one], [False, True])
    finally:
        hook.remove()
    torch.testing.assert_close(loss, clean, **TOLERANCE)
    attention = "decoder.layers.0.self_attention.linear_qkv.weight"
    assert gradients[attention].isnan().any()  # 0 x NaN in the weight's own product: the poison was really there


def test_labels_and_weights_stop_at_boundaries():
    batch = Batch.from_lengths(torch.arange(6), torch.tensor([2, 3, 1]), torch.tensor([True, True, False]))
    assert batch.weights_T.tolist() == [1, 0, 1, 1, 0, 0]
    assert batch.labels_T.tolist()[:5] == [1, 2, 3, 4, 5]


def test_sequences_are_packed_with_their_padding_cut_short():
    import numpy as np

    def sequence(lengths, tokens):
        n = len(lengths)
        return TrainingSequence(
            np.array(tokens), np.array(lengths, dtype=np.int32), np.arange(n), np.zeros(n, dtype=bool), number=0
        )

    one, other = sequence([3, 2], [9, 8, 7, 6, 5, 0, 0, 0, 0, 0]), sequence([4], [1, 2, 3, 4, 0, 0, 0, 0, 0, 0])
    batch = pack_sequences([one, other])
    assert batch.segments.cu_seqlens.tolist() == [0, 3, 5, 9, 10, 14, 18, 20]
    assert batch.weights_T.nonzero().squeeze(1).tolist() == [0, 1, 3, 10, 11, 12]
    assert len(batch.tokens_T) == 20


def test_a_sequence_without_passages_carries_no_loss(model):
    import numpy as np

    empty = np.zeros(0, dtype=np.int64)
    tokens = np.zeros(24, dtype=np.int64)
    batch = pack_sequences([TrainingSequence(tokens, empty.astype(np.int32), empty, empty.astype(bool), 0)])
    total, loss_K, *_ = model.run(batch)
    assert total == 0
    assert len(loss_K) == 0


def test_first_weights_depend_on_seed_and_name_alone(world):
    one, same, other = (build_model(settings(), TrainSettings(), world, seed=seed) for seed in (1, 1, 2))
    tensors = [{part.name: part.parameter.detach() for part in parameter_parts(model)} for model in (one, same, other)]
    three = build_model(settings(layers=3), TrainSettings(), world, seed=1)
    deeper = {part.name: part.parameter for part in parameter_parts(three)}
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name])
        if tensor.dim() == 1:
            assert (tensor == 1).all()
            continue
        assert not torch.equal(tensor, tensors[2][name])
        residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        std = 0.2 / math.sqrt(4) if residual else 0.2
        assert abs(float(tensor.std()) / std - 1) < 0.1
        if not residual:
            assert torch.equal(tensor, deeper[name])


def test_bf16_is_near_fp32(world):
    passages = [passage(n, n) for n in (20, 31)]
    losses = []
    for precision in ("fp32", "bf16"):
        model = build_model(settings(init_std=0.1), TrainSettings(precision=precision), world, seed=4)
        losses.append(loss_and_gradients(model, passages, [True, True])[0])
    assert losses[1].dtype == torch.float32
    assert 0 < float((losses[0] - losses[1]).abs().max()) < 0.05
